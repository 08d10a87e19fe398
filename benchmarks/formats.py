"""What is lost on the way to other programs and back.

    python benchmarks/formats.py [--model starter] [--persona sage] [--tokens 48]

Everything is written into a folder of its own, which is deleted. Printed are

1. for each format, the largest difference of a persona that has left and come back, as a share of the
   vector's length at that layer (gguf: of what is added at the strength that is written);
2. how far the baked model's logits are from live steering, in float32;
3. whether the same prompts go on with the same greedy tokens through the server's engine, `persona_tui.apply`
   and the baked model; where not, at which token they part.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from measuring import machine
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import persona_tui
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import Mix
from persona_tui.formats.read import read_foreign
from persona_tui.formats.write import FORMS, SUFFIXES
from persona_tui.model import Sampling
from persona_tui.project.exchange import export_vectors
from persona_tui.project.project import Project

ASKED = (
    "Who are you?",
    "What is worth learning?",
    "How do I bake bread?",
    "Tell me a story about a lighthouse.",
)
STRENGTH = 0.3


def round_trip(project: Project, name: str, form: str, folder: Path) -> str:
    """How a persona comes back from a format."""
    path = folder / f"{name}-{form}{SUFFIXES.get(form, '.pt')}"
    axis = "assistant" if form == "capping" else None
    try:
        export_vectors(project, {} if axis else {name: 1.0}, form, path, STRENGTH, axis=axis)
    except PersonaTuiError as error:
        return str(error)
    back: dict[int, Tensor] = {}
    for direction in read_foreign(path, project.model.n_layers):
        back |= dict(direction.vectors)
    if axis is None:
        scale = STRENGTH if form == "gguf" else 1.0
        whole = project.personas.get_composite({name: 1.0})
        wanted = {layer: scale * vector for layer, vector in whole.items()}
    else:
        axes = project.personas.axes
        assert axes is not None
        wanted = {layer: -axes.axis(axis, layer) for layer in back}  # it leaves turned round
    kept = [layer for layer in wanted if layer in back]
    worst = max(float((back[at] - wanted[at]).abs().max() / wanted[at].norm()) for at in kept)
    return f"{len(kept)} of {len(wanted)} layers, largest difference {worst:.1e}"


def greedy(model: PreTrainedModel, project: Project, ids: list[int], tokens: int) -> list[int]:
    """What a transformers model goes on with."""
    given = torch.tensor([ids])
    ends = sorted(project.model._end_tokens)
    with torch.no_grad():
        answer = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=tokens,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=ends,
            pad_token_id=ends[0],
        )
    return [int(token) for token in answer[0, len(ids) :]]


def same_tokens(project: Project, name: str, baked: Path, tokens: int) -> str:
    """Whether engine, library and baked model say the same."""
    model, engine = project.model, project.engine
    conversations = [[{"role": "user", "content": text}] for text in ASKED]
    mix = Mix({name: 1.0}, STRENGTH, capping=False)
    sampling = Sampling(max_new_tokens=tokens, temperature=0)
    live = [
        [event.token_id for event in engine.stream(each, mix=mix, sampling=sampling) if event.token_id >= 0]
        for each in conversations
    ]
    encoded = [model.encode(each) for each in conversations]
    with persona_tui.apply(project.personas.get(name), model.model, strength=STRENGTH):
        applied = [greedy(model.model, project, ids, tokens) for ids in encoded]
    other = AutoModelForCausalLM.from_pretrained(baked, dtype=model.dtype)
    written = [greedy(other, project, ids, tokens) for ids in encoded]
    total = sum(map(len, live))
    equal = [sum(map(_agreeing, live, each)) for each in (applied, written)]
    return f"of {total} greedy tokens, apply says the same {equal[0]}, the baked model {equal[1]}"


def _agreeing(one: list[int], other: list[int]) -> int:
    """How many tokens two replies have in common from their beginning."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--persona", default="sage")
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        project = Project.open(folder / "workspace", model=options.model, dtype="float32")
        for form in FORMS:
            print(f"{form}: {round_trip(project, options.persona, form, folder)}")
        baked = folder / "baked"
        try:
            done, _ = export_vectors(project, {options.persona: 1.0}, "baked", baked, STRENGTH)
        except PersonaTuiError as error:
            print(f"baked: {error}")
            return
        print(f"baked: {done.notes[0]}")
        print(same_tokens(project, options.persona, baked, options.tokens))


if __name__ == "__main__":
    main()
