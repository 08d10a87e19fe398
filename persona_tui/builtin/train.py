"""Trains the built-in model: `python -m persona_tui.builtin.train`.

A small Qwen2 whose attention window is shorter than a conversation, so that a voice cannot be looked up in the system
prompt and has to travel in the residual stream, as it does in large models. Nothing here knows of steering: plain
next-token prediction on the generated corpus, loss on unlabelled text and on the assistant's turns.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from persona_tui.builtin.corpus import Document, documents
from persona_tui.builtin.tokenizer import END_OF_TURN, START_OF_TURN, train_tokenizer

WEIGHTS = Path(__file__).parent / "weights"
CHUNK = 32
IGNORED = -100
VALIDATION_SEED = 10_007


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out."""

    vocab_size: int = 4096
    hidden: int = 256
    intermediate: int = 704
    layers: int = 8
    heads: int = 4
    window: int = 24
    tokens: int = 20_000_000
    rows: int = 8
    row_length: int = 1024
    matrix_rate: float = 0.01
    other_rate: float = 2e-3
    warmup: float = 0.03
    decay: float = 0.4
    seed: int = 7
    tokenizer_documents: int = 20_000


@dataclass(frozen=True)
class Batch:
    """Packed documents. All tensors are [rows, length]; `document` tells which tokens may see each other."""

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    document: Tensor


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """An untrained model of the recipe's shape."""
    config = Qwen2Config(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=4096,
        use_sliding_window=True,
        sliding_window=recipe.window,
        max_window_layers=0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def pieces(document: Document) -> Iterator[tuple[str, bool]]:
    """The document's text in order, each part with whether the model learns to write it."""
    if document.text:
        yield document.text + END_OF_TURN, True
        return
    if document.system is not None:
        yield f"{START_OF_TURN}system\n{document.system}{END_OF_TURN}\n", False
    for turn in document.turns:
        yield f"{START_OF_TURN}user\n{turn.user}{END_OF_TURN}\n{START_OF_TURN}assistant\n", False
        yield turn.reply + END_OF_TURN, True
        yield "\n", False


def encode(document: Document, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Token ids and labels (`IGNORED` where nothing is learned)."""
    ids: list[int] = []
    labels: list[int] = []
    for text, learned in pieces(document):
        part = tokenizer.encode(text, add_special_tokens=False)
        ids += part
        labels += part if learned else [IGNORED] * len(part)
    labels[0] = IGNORED
    return ids, labels


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[Batch]:
    """Packed batches, endless: documents follow each other in a row and never see each other."""
    stream = (encode(document, tokenizer) for document in documents(seed))
    stream = (pair for pair in stream if len(pair[0]) <= recipe.row_length)
    waiting: list[tuple[list[int], list[int]]] = []
    while True:
        rows = [_row(stream, waiting, recipe.row_length) for _ in range(recipe.rows)]
        yield Batch(*(torch.tensor([row[i] for row in rows]) for i in range(4)))


def _row(
    stream: Iterator[tuple[list[int], list[int]]], waiting: list[tuple[list[int], list[int]]], length: int
) -> tuple[list[int], ...]:
    """One row filled with whole documents; what does not fit waits for the next row."""
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    document: list[int] = []
    for number in itertools.count(1):
        pair = waiting.pop() if waiting else next(stream)
        if len(ids) + len(pair[0]) > length:
            waiting.append(pair)
            break
        ids += pair[0]
        labels += pair[1]
        positions += range(len(pair[0]))
        document += [number] * len(pair[0])
    rest = length - len(ids)
    return ids + [0] * rest, labels + [IGNORED] * rest, positions + [0] * rest, document + [0] * rest


def window_mask(document: Tensor, window: int) -> Tensor:
    """Additive mask [rows, 1, chunks, CHUNK, 2·CHUNK] of queries in a chunk over it and the chunk before."""
    rows, length = document.shape
    chunks = length // CHUNK
    before = nn.functional.pad(document, (CHUNK, 0), value=-1)[:, :length].view(rows, chunks, CHUNK)
    own = document.view(rows, chunks, CHUNK)
    same = own[..., :, None] == torch.cat([before, own], -1)[..., None, :]
    query, key = torch.arange(CHUNK)[:, None] + CHUNK, torch.arange(2 * CHUNK)[None]
    near = (key <= query) & (query - key < window)
    mask = torch.zeros(rows, 1, chunks, CHUNK, 2 * CHUNK)
    return mask.masked_fill(~(same & near)[:, None], torch.finfo(torch.float32).min)


def chunked_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Sliding-window attention over chunks: the same numbers as the dense kind, at a cost linear in length.

    query, key, value: [rows, heads, length, size]; the mask is `window_mask`'s.
    """
    rows, heads, length, size = query.shape
    shape = (rows, heads, length // CHUNK, CHUNK, size)

    def with_before(x: Tensor) -> Tensor:
        before = nn.functional.pad(x, (0, 0, CHUNK, 0))[:, :, :length]
        return torch.cat([before.reshape(shape), x.reshape(shape)], dim=3)

    scores = query.reshape(shape) @ with_before(key).transpose(-1, -2) * scaling + attention_mask
    weights = scores.float().softmax(-1).to(value.dtype)
    out = (weights @ with_before(value)).reshape(rows, heads, length, size)
    return out.transpose(1, 2), None


def loss_of(model: Qwen2ForCausalLM, body: Any, batch: Batch, window: int) -> Tensor:
    """Mean cross-entropy over the learned tokens of `batch`, in nats."""
    mask = window_mask(batch.document, window).to(batch.tokens.device)
    masks = {"sliding_attention": mask, "full_attention": mask}
    hidden = body(
        input_ids=batch.tokens, position_ids=batch.positions, attention_mask=masks, use_cache=False
    )[0]
    labels = batch.labels[:, 1:].reshape(-1)
    learned = labels != IGNORED
    logits = model.lm_head(hidden[:, :-1].reshape(-1, hidden.shape[-1])[learned])
    return nn.functional.cross_entropy(logits.float(), labels[learned])


def optimizers(model: Qwen2ForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, norms and biases."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "layers" not in name]
    return [
        torch.optim.Muon(matrices, lr=recipe.matrix_rate, weight_decay=0.05, momentum=0.95),
        torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(progress: float, recipe: Recipe) -> float:
    """Share of the learning rate at `progress` (0 to 1): a short rise, a plateau, a straight fall to zero."""
    return min(1.0, progress / recipe.warmup + 0.02, max(0.0, (1 - progress) / recipe.decay))


def train(recipe: Recipe, out: Path, device: str = "cpu") -> None:
    """Trains from scratch and saves model and tokenizer to `out`, also now and then on the way."""
    torch.manual_seed(recipe.seed)
    AttentionInterface.register("chunked_window", chunked_attention)
    sample = itertools.islice(documents(recipe.seed + 1), recipe.tokenizer_documents)
    tokenizer = train_tokenizer(("".join(p for p, _ in pieces(d)) for d in sample), recipe.vocab_size)
    model = build_model(recipe, tokenizer).to(device)
    model.config._attn_implementation = "chunked_window"
    body = torch.compile(model.model, dynamic=False)
    steps = math.ceil(recipe.tokens / (recipe.rows * recipe.row_length))
    optims = optimizers(model, recipe)
    rates = [optim.param_groups[0]["lr"] for optim in optims]
    validation = list(itertools.islice(batches(recipe, tokenizer, VALIDATION_SEED), 4))
    stream = batches(recipe, tokenizer, recipe.seed)
    started = time.monotonic()
    average = 0.0
    for step in range(steps):
        for optim, rate in zip(optims, rates, strict=True):
            optim.param_groups[0]["lr"] = rate * schedule(step / steps, recipe)
        batch = _to(next(stream), device)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = loss_of(model, body, batch, recipe.window)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        average = loss.item() if step == 0 else 0.95 * average + 0.05 * loss.item()
        if step % 50 == 0:
            seconds = time.monotonic() - started
            done = (step + 1) * recipe.rows * recipe.row_length
            print(
                f"step {step}/{steps} loss {average:.3f} {done / seconds:.0f} tokens/s {seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        if step % 300 == 299 or step == steps - 1:
            held = evaluate(model, body, [_to(b, device) for b in validation], recipe.window, device)
            print(f"step {step} validation {held:.4f}", file=sys.stderr, flush=True)
            save(model, tokenizer, out)


def evaluate(model: Qwen2ForCausalLM, body: Any, batches_: list[Batch], window: int, device: str) -> float:
    """Mean loss over fresh documents."""
    with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16):
        return sum(loss_of(model, body, batch, window).item() for batch in batches_) / len(batches_)


def _to(batch: Batch, device: str) -> Batch:
    return Batch(*(getattr(batch, name).to(device) for name in Batch.__dataclass_fields__))


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes bfloat16 weights, config and tokenizer that `AutoModelForCausalLM.from_pretrained` loads."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    model.config._attn_implementation = "sdpa"
    model.config.dtype = torch.bfloat16
    model.save_pretrained(out, state_dict=weights)
    model.config.dtype = torch.float32
    model.config._attn_implementation = "chunked_window"
    tokenizer.save_pretrained(out)


def main() -> None:
    """Train the built-in model."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--tokens", type=int, default=Recipe.tokens, help="training tokens in all")
    parser.add_argument("--window", type=int, default=Recipe.window, help="attention window, in tokens")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    recipe = Recipe(tokens=options.tokens, window=options.window, seed=options.seed)
    train(recipe, options.out, options.device)


if __name__ == "__main__":
    main()
