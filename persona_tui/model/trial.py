"""Trying a model once: what would be wrong later is said when it is loaded, in one line.

1. Its tokenizer fits its embedding, and its chat template renders.
2. One pass over a few tokens without a cache, and the same with one, a step at a time: a long row and a short
   one beside it, padded, as replies are written. Both must come to the same, finite numbers.
3. The pass without a cache once more, with packed weights (`model/packed.py`): some architectures use theirs
   in other ways than to multiply.

What was found is kept in the user's cache folder, so that it costs nothing the second time.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from persona_tui.core.documents import json_value, read_plain
from persona_tui.core.errors import GenerationError, ModelLoadError, WorkspaceError
from persona_tui.core.files import atomic_write_text
from persona_tui.model import text
from persona_tui.model.architecture import (
    accepted_arguments,
    cache_argument,
    check_finite,
    clear_memory_errors,
    device_of,
    find_blocks,
    hidden_size,
    returned_cache,
)
from persona_tui.model.packed import packed

_VERSION = 2
_TOKENS = 16  # of the long row; the short one has half as many
_STEPS = 3  # the last tokens, which are read one by one
_FURTHEST_APART = 0.002  # in standard deviations of the logits; a wrong cache makes 0.1 and more
_FURTHEST_IN_HALF = 0.3  # with 16-bit numbers, and all quantised ones
_FILE = "models.json"


@dataclass(frozen=True)
class Trial:
    """What came out.

    Attributes:
        reason: why the model cannot be used; empty = it can.
        own_cache: whether it writes right only with the cache that it makes itself.
        packs: whether it computes the same with packed weights.
    """

    reason: str = ""
    own_cache: bool = False
    packs: bool = False


def try_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Trial:
    """Try a model; see above. It costs a few short passes."""
    if reason := _unfit_tokenizer(model, tokenizer):
        return Trial(reason)
    ids = _some_tokens(model, tokenizer)
    try:
        with torch.inference_mode(), clear_memory_errors():
            return _compared(model, ids)
    except GenerationError:
        raise
    except Exception as error:  # whatever an architecture does, it cannot be used
        return Trial(f"a pass fails: {' '.join(str(error).split())[:200] or type(error).__name__}")


def _unfit_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    rows = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    try:
        ids = text.encode_prompt(tokenizer, [{"role": "user", "content": "Hi"}])
    except GenerationError as error:
        return str(error).rstrip(".")
    if not ids:
        return "its tokenizer produces no tokens"
    # An added token that the template never writes does not matter: in a message it is text.
    added = tokenizer.get_added_vocab()
    words = (number for token, number in tokenizer.get_vocab().items() if token not in added)
    highest = max([*ids, *words])
    if highest >= rows:
        return (
            f"its tokenizer has the token {highest}, and its embedding only {rows} rows: they do not belong "
            "together, or the embedding was not resized"
        )
    return ""


def _some_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the beginning of a conversation, as long as the trial's row."""
    words = " ".join(["What is bread made of, and who bakes it where you live?"] * 4)
    return text.encode_prompt(tokenizer, [{"role": "user", "content": words}])[:_TOKENS]


def _compared(model: PreTrainedModel, ids: list[int]) -> Trial:
    device = device_of(model.get_input_embeddings())
    rows = [ids, ids[: max(_STEPS + 2, len(ids) // 2)]]
    shapes: set[tuple[int, ...]] = set()
    hooks = [block.register_forward_hook(_shape_taker(shapes)) for block in find_blocks(model)]
    try:
        expected = _without_cache(model, rows, device)
    finally:
        for hook in hooks:
            hook.remove()
    wanted = (len(rows), max(map(len, rows)), hidden_size(model))
    if strange := shapes - {wanted}:
        return Trial(f"its blocks return {min(strange)} where {wanted} was expected: it cannot be steered")
    try:
        check_finite(expected.flatten(0, 1))
    except GenerationError:
        return Trial(f"its logits are not finite in {_kind(model)}: try --dtype bfloat16 or float32")
    furthest = _FURTHEST_APART if _precise(model) else _FURTHEST_IN_HALF
    failure = ""
    for own in (False, True):
        try:
            apart = _apart(expected, _with_cache(model, rows, own, device))
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
            failure = failure or f"it takes no cache ({type(error).__name__})"
            continue
        if apart <= furthest:
            return Trial(own_cache=own, packs=_packs(model, rows, device, expected))
        failure = f"with a cache its output differs ({apart:.2g} standard deviations apart)"
    return Trial(failure)


def _packs(model: PreTrainedModel, rows: list[list[int]], device: torch.device, expected: Tensor) -> bool:
    with packed(model):
        try:
            found = _without_cache(model, rows, device)
        except (RuntimeError, TypeError, ValueError):
            return False
    return _apart(expected, found) <= (_FURTHEST_APART if _precise(model) else _FURTHEST_IN_HALF)


def _shape_taker(shapes: set[tuple[int, ...]]) -> Any:
    """Return a hook that notes what a block returns."""

    def take(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        shapes.add(tuple(hidden.shape))

    return take


def _without_cache(model: PreTrainedModel, rows: list[list[int]], device: torch.device) -> Tensor:
    """Return the logits of each row's last tokens, `[rows, steps, vocabulary]`; padding stands behind."""
    width = max(map(len, rows))
    tokens = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in rows], device=device)
    logits = model(input_ids=tokens, use_cache=False).logits.float().cpu()
    return torch.stack([logits[at, len(row) - _STEPS : len(row)] for at, row in enumerate(rows)])


def _with_cache(model: PreTrainedModel, rows: list[list[int]], own: bool, device: torch.device) -> Tensor:
    """Return the same as replies are written: padding stands in front, and the last tokens are read one by
    one.
    """
    accepted, width = accepted_arguments(model), max(map(len, rows))
    tokens = torch.tensor([[*[row[0]] * (width - len(row)), *row] for row in rows], device=device)
    padding = torch.tensor([[width - len(row)] for row in rows], device=device)
    places = torch.arange(width, device=device)[None] - padding
    cache: Any = None if own else DynamicCache(config=model.config)
    found, start = [], 0
    for stop in range(width - _STEPS + 1, width + 1):
        arguments: dict[str, Any] = {"input_ids": tokens[:, start:stop], "use_cache": True}
        arguments["attention_mask"] = (places[:, :stop] >= 0).long()
        if "position_ids" in accepted:
            arguments["position_ids"] = places[:, start:stop].clamp(min=0)
        if cache is not None:
            arguments[cache_argument(model)] = cache
        output = model(**arguments)
        cache = returned_cache(output) if own else cache
        found.append(output.logits[:, -1].float().cpu())
        start = stop
    return torch.stack(found, dim=1)


def _apart(one: Tensor, other: Tensor) -> float:
    """Return the mean distance of logits, in their own standard deviations; infinite if it cannot be told."""
    finite = one.isfinite() & other.isfinite()
    if not bool(other.amax(-1).isfinite().all()):
        return float("inf")
    spread = float(one[finite].std()) or 1.0
    return float((one - other)[finite].abs().mean()) / spread


def _precise(model: PreTrainedModel) -> bool:
    return model.dtype == torch.float32 and getattr(model.config, "quantization_config", None) is None


def _kind(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")


# Remembering ------------------------------------------------------------------------------------------------


def tried(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, identity: tuple[str, ...]
) -> Trial:
    """Return the trial of a model: the one that is remembered, or else a new one.

    Args:
        model: is loaded.
        tokenizer: its tokenizer.
        name: what the user calls it.
        identity: tells it from others, and from itself in another precision.

    Raises:
        ModelLoadError: it cannot be used; says why.
    """
    path = Path(platformdirs.user_cache_dir("persona-tui", appauthor=False)) / _FILE
    key = _key(model, tokenizer, identity)
    known = _remembered(path)
    trial = known.get(key)
    if trial is None:
        trial = try_model(model, tokenizer)
        _remember(path, {**known, key: trial})
    if trial.reason:
        raise ModelLoadError(f"{name} cannot be used: {trial.reason}.")
    return trial


def _key(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, identity: tuple[str, ...]) -> str:
    template = str(getattr(tokenizer, "chat_template", None))
    where = device_of(model.get_input_embeddings()).type
    parts = [
        _VERSION,
        *identity,
        len(tokenizer),
        template,
        where,
        torch.__version__,
        transformers.__version__,
    ]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _remembered(path: Path) -> dict[str, Trial]:
    """Return what is kept; nothing if the file is missing or damaged, and everything is then tried again."""
    try:
        found = json_value(read_plain(path))
        return {str(key): Trial(**value) for key, value in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(path: Path, trials: dict[str, Trial]) -> None:
    kept = dict(list(trials.items())[-_MOST_KEPT:])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, json.dumps({key: asdict(trial) for key, trial in kept.items()}, indent=1))
    except (OSError, WorkspaceError):  # it is tried again next time
        return


_MOST_KEPT = 200
