"""Steering and measuring a transformers model of one's own, without a workspace.

    persona = load("sage.safetensors")
    with apply(persona, model, strength=0.3):
        model.generate(**inputs)

The model stays the caller's: it has hooks inside the `with` block only, and its weights are not touched.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from persona_tui.core.errors import VectorFileError
from persona_tui.core.identity import ModelSketch
from persona_tui.core.mix import STRENGTH
from persona_tui.model.architecture import find_blocks, hidden_size, n_layers
from persona_tui.model.fingerprint import fingerprint, sketch
from persona_tui.model.request import Interventions
from persona_tui.model.residual import ResidualHooks
from persona_tui.model.wrapper import ModelWrapper
from persona_tui.traits.score import TraitScorer
from persona_tui.traits.vector import TraitVector
from persona_tui.vectors.files import check_model, same_model
from persona_tui.vectors.persona import PersonaVector

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(path: str | Path) -> PersonaVector | TraitVector:
    """Read a persona or a trait from its file.

    Args:
        path: a `.safetensors` file that persona-tui has written. Nothing in it is ever run.

    Returns:
        A `PersonaVector` for a persona, a `TraitVector` for a trait.

    Raises:
        VectorFileError: the file is missing, damaged, or holds something else.
    """
    vector = PersonaVector.load(Path(path))
    return TraitVector.load(Path(path)) if vector.kind == "trait" else vector


@contextmanager
def apply(
    persona: PersonaVector | TraitVector,
    model: PreTrainedModel | ModelWrapper,
    strength: float = 0.3,
    *,
    safe: bool = True,
    layers: Sequence[int] | None = None,
) -> Iterator[None]:
    """Steer a model with a persona inside a `with` block: every position of every row of every pass.

    Blocks may be nested, with the same persona or others; what they add, adds up. The hooks are gone when the
    block is left, by an exception too. It works with batches, with a key-value cache and under autograd.
    There is no floor: `SteeringEngine` caps, blends and calibrates.

    Args:
        persona: from `load`, or extracted; of a model with the same shape.
        model: a decoder-only transformers model, wherever its weights are; or a `ModelWrapper` around one.
        strength: 0 = unsteered, 0.3 = clear (for a calibrated persona), 1 = far too much; negative = away.
        safe: whether to add the vector without its component along the safety axis.
        layers: where to add it, counted from 0; by default where its calibration says.

    Raises:
        VectorFileError: the persona is of a model of another size or with wholly other weights, or has no
            vector at one of `layers`; or it is a name, not what `load` returns.
        ModelLoadError: the model is not a decoder.
        PersonaTuiError: the strength is out of its range.

    Warns:
        UserWarning: the persona was made on a near copy of this model; or on one of this size with other
            weights, and its file is too old to say how far those are.
    """
    STRENGTH.check("strength", strength)
    if layers is not None and not layers:
        raise VectorFileError("layers names no layer: leave it out for the calibrated ones.")
    model = model.model if isinstance(model, ModelWrapper) else model
    blocks, vector = find_blocks(model), _vector(persona)
    _check(vector, model, caller=4)
    added = {layer: strength * each for layer, each in vector.direction(safe, layers).items()}
    hooks = ResidualHooks(blocks, hidden_size(model), 1)
    if strength:
        hooks.apply(Interventions(steering=added))
    with hooks:
        yield


def score(
    trait: PersonaVector | TraitVector,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    question: str = "",
) -> float:
    """Return how much of a trait a reply shows, as the model reads it.

    Args:
        trait: a trait from `load`; of a model with the same shape.
        model: reads the reply, unsteered unless inside `apply`.
        tokenizer: of the model; its chat template, if it has one, writes the conversation.
        text: the reply.
        question: the message that it answers.

    Returns:
        1 where the trait's high examples lie on average, −1 where the low ones do, 0 in the middle.

    Raises:
        VectorFileError: it is a persona and not a trait, or of a model of another size or with wholly other
            weights.
        GenerationError: the text is empty, or does not fit the context.

    Warns:
        UserWarning: the trait was made on a near copy of this model; or on one of this size with other
            weights, and its file is too old to say how far those are.
    """
    measured = trait if isinstance(trait, TraitVector) else TraitVector.of(trait)
    _check(measured.vector, model, caller=3)
    training = model.training
    try:
        scorer = TraitScorer(ModelWrapper(model, tokenizer, model.name_or_path or "the model"), [measured])
        return scorer.score_text(question, text).scores[measured.name]
    finally:
        model.train(training)


def _vector(persona: PersonaVector | TraitVector) -> PersonaVector:
    if not isinstance(persona, PersonaVector | TraitVector):
        raise VectorFileError(f"a persona from persona_tui.load(FILE) is needed, not {persona!r}.")
    return persona.vector if isinstance(persona, TraitVector) else persona


def _check(vector: PersonaVector, model: PreTrainedModel, caller: int) -> None:
    """Refuse a vector that does not fit the model; warn about one that fits but was made on another.

    Args:
        vector: to be used with the model.
        model: the caller's.
        caller: how many frames up the user's own line is, for the warning.
    """
    needed, width = vector.layers[-1] + 1, hidden_size(model)
    made_on = vector.metadata.get("model_name") or "another model"
    if vector.hidden_size != width or needed > n_layers(model):
        raise VectorFileError(
            f'"{vector.name}" was made on {made_on}: its vectors are {vector.hidden_size} wide and reach'
            f" layer {needed - 1}; this model is {width} wide and has layers 0 to {n_layers(model) - 1}."
        )
    known, own = vector.metadata.get("model_fingerprint"), fingerprint(model)
    if not known or same_model(known, own):
        return
    note = f'"{vector.name}" was made on {made_on}, whose weights differ from this model\'s.'
    if ModelSketch.from_metadata(vector.metadata) is not None:
        called = model.name_or_path or "this model"
        note = check_model(f'"{vector.name}"', vector.metadata, own, called, sketch(model))
    warnings.warn(note, stacklevel=caller)
