"""Trains the tiny model: `python -m tools.tiny.train`.

A small Qwen2. Its first layers see the whole conversation; the others have a window that is shorter than a
conversation, so that a voice cannot be looked up in the system prompt again and again and has to travel in
the residual stream, as it does in large models. Nothing here knows of steering: plain next-token prediction
on the generated corpus, loss on unlabelled text and on the assistant's turns.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tools.tiny.corpus import Document, documents, long_chats
from tools.tiny.tokenizer import END_OF_TURN, START_OF_TURN, train_tokenizer

WEIGHTS = Path(__file__).resolve().parents[2] / "persona_tui" / "model" / "tiny"
CHUNK = 32
POOL = 48
SAVE_EVERY = 300
IGNORED = -100
VALIDATION_SEED = 10_007
LONGEST = 12.0
"""Root mean square of a residual stream above which it is penalised."""
OVERLENGTH_WEIGHT = 0.2


@dataclass(frozen=True)
class Stage:
    """A part of the training with one batch size. Each begins with fresh optimizers and fresh documents.

    The learning rate is a multiple of the recipe's: it rises over `warmup` steps to `rate`, stays until
    `plateau` steps are done and then falls in a straight line to `final` times `rate`.

    `blocked` is the share of tokens that may not look back further than the window in the wide layers, see
    `document_mask`; `noise` is the largest size of the noise that blurs the residual stream, see `Blur`;
    `drills` is the share of documents that are about refusing or not.
    """

    steps: int
    tokens: int
    rate: float
    warmup: int
    plateau: int
    final: float
    blocked: float = 0.0
    noise: float = 0.0
    drills: float = 0.0

    def rate_at(self, step: int) -> float:
        """The multiple at one step."""
        rise = (step + 1) / self.warmup
        fallen = max(0.0, (step - self.plateau) / max(1, self.steps - self.plateau))
        return self.rate * min(1.0, rise, 1 - (1 - self.final) * fallen)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out."""

    vocab_size: int = 4096
    hidden: int = 256
    intermediate: int = 704
    layers: int = 8
    heads: int = 4
    window: int = 24
    wide_layers: int = 3
    row_length: int = 256
    long_every: int = 12
    long_length: int = 1024
    matrix_rate: float = 0.01
    other_rate: float = 2e-3
    stages: tuple[Stage, ...] = (
        Stage(steps=1200, tokens=8192, rate=1.0, warmup=51, plateau=1025, final=0.745),
        Stage(steps=600, tokens=4096, rate=0.75, warmup=50, plateau=600, final=1.0),
        Stage(steps=300, tokens=4096, rate=0.75, warmup=20, plateau=0, final=0.77),
        Stage(steps=1200, tokens=4096, rate=0.6, warmup=20, plateau=100, final=0.42),
        Stage(steps=300, tokens=4096, rate=0.45, warmup=20, plateau=300, final=1.0, blocked=0.75),
        Stage(steps=750, tokens=4096, rate=0.5, warmup=20, plateau=150, final=0.0, blocked=0.75, noise=0.5),
        Stage(steps=300, tokens=4096, rate=0.5, warmup=60, plateau=300, final=1.0, blocked=0.5, noise=0.5),
        Stage(steps=3000, tokens=4096, rate=0.5, warmup=40, plateau=1300, final=0.29, blocked=0.5, noise=0.5),
        Stage(
            steps=1300,
            tokens=4096,
            rate=0.25,
            warmup=20,
            plateau=300,
            final=0.0,
            blocked=0.5,
            noise=0.5,
            drills=0.45,
        ),
    )
    seed: int = 7
    tokenizer_documents: int = 20_000


@dataclass(frozen=True)
class Batch:
    """Packed documents. All tensors are [rows, length]; `document` tells which tokens may see each other."""

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    document: Tensor

    def to(self, device: str) -> Batch:
        """The same on another device."""
        return Batch(*(getattr(self, name).to(device) for name in Batch.__dataclass_fields__))


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
        max_window_layers=recipe.wide_layers,
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


def batches(
    recipe: Recipe, tokens: int, tokenizer: PreTrainedTokenizerFast, seed: int, drills: float = 0.0
) -> Iterator[Batch]:
    """Packed batches of `tokens`, endless: documents share a row and never see each other. Now and then one
    has long chats.
    """
    short = _packed(documents(seed, drills), tokenizer, tokens // recipe.row_length, recipe.row_length)
    long = _packed(long_chats(seed), tokenizer, tokens // recipe.long_length, recipe.long_length)
    for step in itertools.count(1):
        yield next(long if step % recipe.long_every == 0 else short)


def _packed(
    source: Iterable[Document], tokenizer: PreTrainedTokenizerFast, rows: int, length: int
) -> Iterator[Batch]:
    """Batches of whole documents; those longer than a row are left out."""
    encoded = (encode(document, tokenizer) for document in source)
    fitting = (pair for pair in encoded if len(pair[0]) <= length)
    pool = list(itertools.islice(fitting, POOL))
    while True:
        filled = [_row(fitting, pool, length) for _ in range(rows)]
        yield Batch(*(torch.tensor([row[i] for row in filled]) for i in range(4)))


Encoded = tuple[list[int], list[int]]


def _row(source: Iterator[Encoded], pool: list[Encoded], length: int) -> tuple[list[int], ...]:
    """One row: the oldest document of the pool, then the largest that still fits, until none does."""
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    document: list[int] = []
    place = 0
    for number in itertools.count(1):
        pair = pool.pop(place)
        pool.append(next(source))
        ids += pair[0]
        labels += pair[1]
        positions += range(len(pair[0]))
        document += [number] * len(pair[0])
        rest = length - len(ids)
        fits = [i for i, (other, _) in enumerate(pool) if len(other) <= rest]
        if not fits:
            break
        place = max(fits, key=lambda i: len(pool[i][0]))
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


def document_mask(document: Tensor, near: int = 0, blocked: float = 0.0) -> Tensor:
    """Additive mask [rows, 1, length, length]: every token sees those before it in its own document.

    A share of the tokens, drawn anew each time, is `blocked` from seeing further than `near`. Any token may
    then have to rely on what its neighbours know, so each of them carries the voice along.
    """
    rows, length = document.shape
    seen = (document[:, :, None] == document[:, None, :]) & torch.ones(
        length, length, dtype=torch.bool
    ).tril()
    if blocked:
        place = torch.arange(length)
        far = place[:, None] - place[None] >= near
        seen &= ~(far & (torch.rand(rows, length) < blocked)[:, :, None])
    mask = torch.zeros(rows, 1, length, length)
    return mask.masked_fill(~seen[:, None], torch.finfo(torch.float32).min)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention over packed rows; in layers with a window over chunks, at a cost linear in length.

    query, key, value: [rows, heads, length, size]; the mask is `window_mask`'s or `document_mask`'s.
    """
    if attention_mask.ndim == 4:
        return _weighted(query, key, value, attention_mask, scaling).transpose(1, 2), None
    rows, heads, length, size = query.shape
    shape = (rows, heads, length // CHUNK, CHUNK, size)

    def with_before(x: Tensor) -> Tensor:
        before = nn.functional.pad(x, (0, 0, CHUNK, 0))[:, :, :length]
        return torch.cat([before.reshape(shape), x.reshape(shape)], dim=3)

    out = _weighted(query.reshape(shape), with_before(key), with_before(value), attention_mask, scaling)
    return out.reshape(rows, heads, length, size).transpose(1, 2), None


def _weighted(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    scores = query @ key.transpose(-1, -2) * scaling + mask
    return scores.float().softmax(-1).to(value.dtype) @ value


class Blur:
    """Noise on the residual stream while training: a different one at every token and every block.

    What a token has to tell those after it must then be told by many of them. The noise is isotropic and
    independent from token to token; each row of a batch has its own size, between none and `size` times the
    length of the residual stream.
    """

    def __init__(self, size: float) -> None:
        self.size = size

    def __call__(self, module: nn.Module, inputs: Any, hidden: Tensor) -> Tensor:
        """Forward hook of a decoder block; `hidden` is [rows, length, width]."""
        length = hidden.detach().float().pow(2).mean(-1, keepdim=True).sqrt()
        size = self.size * torch.rand(hidden.shape[0], 1, 1, device=hidden.device)
        return hidden + (size * length * torch.randn_like(hidden)).to(hidden.dtype)


def loss_of(
    model: Qwen2ForCausalLM,
    body: Any,
    batch: Batch,
    window: int,
    blocked: float = 0.0,
    blurred: bool = False,
) -> Tensor:
    """Mean cross-entropy over the learned tokens of `batch`, in nats; when `blurred`, with `overlength`."""
    device = batch.tokens.device
    masks = {
        "sliding_attention": window_mask(batch.document.cpu(), window).to(device),
        "full_attention": document_mask(batch.document.cpu(), window, blocked).to(device),
    }
    out = body(
        input_ids=batch.tokens,
        position_ids=batch.positions,
        attention_mask=masks,
        use_cache=False,
        output_hidden_states=blurred,
    )
    hidden = out[0]
    labels = batch.labels[:, 1:].reshape(-1)
    learned = labels != IGNORED
    logits = model.lm_head(hidden[:, :-1].reshape(-1, hidden.shape[-1])[learned])
    loss = nn.functional.cross_entropy(logits.float(), labels[learned])
    return loss + overlength(out.hidden_states[1:-1]) if blurred else loss


def overlength(hidden: Sequence[Tensor]) -> Tensor:
    """A penalty on residual streams longer than `LONGEST`: without it each block shouts louder than the
    noise before it, and lengths grew a hundredfold.
    """
    lengths = torch.stack([each.float().pow(2).mean(-1).add(1e-6).sqrt() for each in hidden])
    return OVERLENGTH_WEIGHT * (lengths / LONGEST).log().relu().pow(2).mean()


def optimizers(model: Qwen2ForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, norms and biases."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "layers" not in name]
    return [
        torch.optim.Muon(matrices, lr=recipe.matrix_rate, weight_decay=0.05, momentum=0.95),
        torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


class Trainer:
    """A model in training, with its optimizers and data."""

    def __init__(self, recipe: Recipe, device: str, resume: Path | None = None) -> None:
        """Starts anew, or from the weights in `resume`."""
        torch.manual_seed(recipe.seed)
        AttentionInterface.register("packed", packed_attention)
        self.recipe = recipe
        self.device = device
        self.tokenizer: Any = _tokenizer(recipe) if resume is None else _saved_tokenizer(resume)
        self.model = _untrained(recipe, self.tokenizer) if resume is None else _weights(resume)
        self.model.to(device)
        self.model.config._attn_implementation = "packed"
        self.hooks: list[Any] = []
        held_out = batches(recipe, recipe.stages[0].tokens, self.tokenizer, VALIDATION_SEED)
        self.held_out = list(itertools.islice(held_out, 4))

    def run(self, number: int, stage: Stage) -> Iterator[float]:
        """One stage; yields the loss of every step."""
        body = self._body(stage.noise)
        optims = optimizers(self.model, self.recipe)
        rates = [optimizer.param_groups[0]["lr"] for optimizer in optims]
        seed = self.recipe.seed + 1000 * number
        data = batches(self.recipe, stage.tokens, self.tokenizer, seed, stage.drills)
        for step in range(stage.steps):
            for optimizer, rate in zip(optims, rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * stage.rate_at(step)
            loss = self._loss(body, next(data), stage.blocked, stage.noise > 0)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in optims:
                optimizer.step()
                optimizer.zero_grad()
            yield loss.item()

    def validate(self) -> float:
        """Mean loss over fresh documents."""
        with torch.no_grad():
            losses = [self._loss(self.model.model, batch).item() for batch in self.held_out]
        return sum(losses) / len(losses)

    def _body(self, noise: float) -> Any:
        """The compiled model, with noise behind the blocks from the last wide one to the last but one."""
        for hook in self.hooks:
            hook.remove()
        blocks = self.model.model.layers[self.recipe.wide_layers - 1 : -2] if noise else ()
        self.hooks = [block.register_forward_hook(Blur(noise)) for block in blocks]
        return torch.compile(self.model.model, dynamic=False)

    def _loss(self, body: Any, batch: Batch, blocked: float = 0.0, blurred: bool = False) -> Tensor:
        with torch.autocast(self.device, dtype=torch.bfloat16):
            return loss_of(self.model, body, batch.to(self.device), self.recipe.window, blocked, blurred)


def train(recipe: Recipe, out: Path, device: str = "cpu", resume: Path | None = None, first: int = 0) -> None:
    """Trains all stages from the `first` on; saves to `out` at the end, and now and then on the way."""
    trainer = Trainer(recipe, device, resume)
    for number, stage in enumerate(recipe.stages[first:], first):
        started = time.monotonic()
        average: float | None = None
        for step, loss in enumerate(trainer.run(number, stage)):
            average = loss if average is None else 0.95 * average + 0.05 * loss
            if step % 50 == 0:
                seconds = time.monotonic() - started
                speed = (step + 1) * stage.tokens / seconds
                _say(f"stage {number} step {step}/{stage.steps} loss {average:.3f} {speed:.0f} tokens/s")
            if step % SAVE_EVERY == SAVE_EVERY - 1 or step == stage.steps - 1:
                save(trainer.model, trainer.tokenizer, out)
                _say(f"stage {number} step {step} validation loss {trainer.validate():.4f}, saved to {out}")


def _untrained(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Any:
    return build_model(recipe, tokenizer)


def _weights(folder: Path) -> Any:
    return Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _saved_tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def _tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    sample = itertools.islice(documents(recipe.seed + 1), recipe.tokenizer_documents)
    return train_tokenizer(
        ("".join(text for text, _ in pieces(document)) for document in sample), recipe.vocab_size
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes bfloat16 weights, config and tokenizer that `AutoModelForCausalLM.from_pretrained` loads."""
    small: Any = copy.deepcopy(model)
    small.to(torch.bfloat16)
    small.config._attn_implementation = "sdpa"
    small.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Train the tiny model."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--window", type=int, default=Recipe.window, help="attention window, in tokens")
    parser.add_argument("--wide-layers", type=int, default=Recipe.wide_layers, help="first layers without it")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resume", type=Path, help="weights to go on from")
    parser.add_argument("--first-stage", type=int, default=0, help="with --resume: which stage comes next")
    options = parser.parse_args()
    recipe = Recipe(window=options.window, wide_layers=options.wide_layers, seed=options.seed)
    train(recipe, options.out, options.device, options.resume, options.first_stage)


if __name__ == "__main__":
    main()
