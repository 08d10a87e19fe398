"""How long a persona and a whole set of roles take on GPUs, and in what memory: computed, not measured.

    python benchmarks/scaling.py                            from the shares that were measured on a CPU
    python benchmarks/scaling.py --measure                  from those that are measured here, in two minutes
    python benchmarks/scaling.py --measure cuda             the same on a GPU, whose own speed then counts
    python benchmarks/scaling.py --measured 7b=2100         scaled to response tokens per second of a real run
                                                            (peers.py --device cuda --shape 7b prints them)

A decoding step reads all weights, and reads, copies and reads again the cache, which grows by concatenation;
or it computes for its rows; or it takes what Python and transformers need to start a block's kernels:
whichever is longest. The prompt is computed once. What share of a machine's bandwidth and arithmetic an
extraction reaches, and what a block costs at least, is measured: with one row, with 32, and on a model so
small that nothing else is left. The machine's own figures are a matrix times a vector and times a matrix.

A model spread over several GPUs of one process uses one after the other: that buys memory, not time. More
processes divide the batches among them; what they exchange is a few sums, and is left out, as is calibration.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from measuring import Cost, machine, make_model, set_threads, short, table, timed

PERSONA, ROLE_SET = 500, 300_000  # responses; the second is 275 roles


@dataclass(frozen=True)
class Shape:
    """A decoder with gated MLPs and grouped key-value heads."""

    name: str
    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int

    @property
    def block_parameters(self) -> int:
        """Of all blocks."""
        attention = 2 * self.hidden * self.head * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.mlp)

    @property
    def parameters(self) -> int:
        """With input embeddings and a head of their own."""
        return self.block_parameters + 2 * self.hidden * self.vocabulary

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token, in 16 bits."""
        return 2 * self.layers * self.kv_heads * self.head * 2


SHAPES = {
    "7b": Shape("7B (Qwen2.5-7B)", 28, 3584, 18944, 28, 4, 128, 152064),
    "14b": Shape("14B (Qwen2.5-14B)", 48, 5120, 13824, 40, 8, 128, 152064),
    "70b": Shape("70B (Llama-3.3-70B)", 80, 8192, 28672, 64, 8, 128, 128256),
}


@dataclass(frozen=True)
class Assumptions:
    """What the machine does, and what is asked of it.

    Attributes:
        bandwidth: of the GPU's memory, bytes per second.
        compute: 16-bit multiplications and additions per second.
        bandwidth_share, compute_share: how much of them an extraction reaches.
        block_seconds: the least time for one block in one pass.
        basis: where those come from.
        gpu_memory: bytes of one GPU.
        prompt, response: tokens.
        batch: responses that are written together.
    """

    bandwidth: float = 3.35e12
    compute: float = 989e12
    bandwidth_share: float = 0.91
    compute_share: float = 0.32
    block_seconds: float = 0.97e-3
    basis: str = (
        "the shares as measured on a Xeon with Qwen2.5-0.5B's shape, 8 layers; "
        "the block as in decoding.py on an H200, one row of Qwen2.5-7B's shape, eager"
    )
    gpu_memory: float = 80e9
    prompt: int = 80
    response: int = 256
    batch: int = 32

    def described(self) -> str:
        """In words."""
        return (
            f"One GPU has {self.bandwidth / 1e12:.2f} TB/s, {self.compute / 1e12:.0f} TFLOPS in bfloat16 and "
            f"{self.gpu_memory / 1e9:.0f} GB (an H100 with the defaults); {self.bandwidth_share:.0%} and "
            f"{self.compute_share:.0%} of the first two are reached, and a block takes at least "
            f"{self.block_seconds * 1e3:.2g} ms ({self.basis}). Prompts have {self.prompt} tokens, "
            f"responses {self.response}. "
            "In 4 bits, weights take 0.55 bytes each, and every pass first writes them out in 16 bits and "
            "reads them again."
        )


# Measuring --------------------------------------------------------------------------------------------------

_FEW, _MANY = 4, 16  # tokens: the difference is decoding alone
_ROWS = 32


def measured(device: str, assumed: Assumptions) -> Assumptions:
    """The same with shares, and on a GPU with speeds, that are measured here."""
    import torch

    gpu = device.startswith("cuda")
    dtype = "bfloat16" if gpu else "float32"
    if not gpu:
        set_threads(1)  # whose CPU seconds are the time that it takes on a machine without other work
    size = 2 if gpu else 4
    bandwidth, compute = _raw(device, getattr(torch, dtype), gpu)
    model, tokenizer = make_model("0.5b-8", device, dtype)
    weights = sum(each.numel() for each in model.parameters())  # the head is tied: each is read once
    one, many = (_step_seconds(model, tokenizer, rows, gpu) for rows in (1, _ROWS))
    tiny = make_model("tiny", device, dtype)
    least = _step_seconds(*tiny, 1, gpu) / tiny[0].config.num_hidden_layers
    where = f"measured with Qwen2.5-0.5B's shape, 8 layers, on {machine(device)}"
    found = replace(
        assumed,
        bandwidth_share=min(1.0, weights * size / one / bandwidth),
        compute_share=min(1.0, _ROWS * 2 * weights / many / compute),
        block_seconds=least,
        basis=where,
    )
    return replace(found, bandwidth=bandwidth, compute=compute) if gpu else found


def _seconds(cost: Cost, gpu: bool) -> float:
    return cost.wall if gpu else cost.cpu


def _raw(device: str, dtype: Any, gpu: bool) -> tuple[float, float]:
    """Bytes per second of reading a matrix, and operations per second of multiplying two."""
    import torch

    wide, square = (16384, 4096) if gpu else (8192, 2048)
    with torch.inference_mode():
        matrix = torch.ones(wide, wide, device=device, dtype=dtype)
        vector = torch.ones(wide, device=device, dtype=dtype)
        left = torch.ones(square, square, device=device, dtype=dtype)
        reads = [_seconds(timed(lambda: float(len(matrix @ vector) > 0)), gpu) for _ in range(9)]
        products = [_seconds(timed(lambda: float(len(left @ left) > 0)), gpu) for _ in range(9)]
    return matrix.numel() * matrix.element_size() / median(reads), 2 * square**3 / median(products)


def _step_seconds(model: Any, tokenizer: Any, rows: int, gpu: bool) -> float:
    """What one step of decoding takes, with capture at every layer."""
    from sides import persona_requests

    from persona_tui.model import ModelWrapper, Sampling

    wrapper = ModelWrapper(model, tokenizer, "measured")
    wrapper._end_tokens = frozenset()
    requests = persona_requests(rows)

    def writing(tokens: int) -> float:
        sampling = Sampling(tokens, temperature=0.7, top_p=1.0)
        layers = range(wrapper.n_layers)
        return _seconds(
            timed(lambda: float(len(wrapper.generate(requests, sampling, capture_layers=layers)) > 0)), gpu
        )

    writing(2)
    turns = [(writing(_MANY) - writing(_FEW)) / (_MANY - _FEW) for _ in range(5)]
    return median(turns)


# Computing --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A model with its weights in so many bits."""

    shape: Shape
    bits: int

    @property
    def weight_bytes(self) -> float:
        """Of all weights; embeddings stay in 16 bits."""
        if self.bits == 16:
            return 2 * self.shape.parameters
        return 0.55 * self.shape.block_parameters + 4 * self.shape.hidden * self.shape.vocabulary

    def step_bytes(self, assumed: Assumptions) -> float:
        """Memory traffic of one decoding step, half-way through a response."""
        read = 2 * (self.shape.block_parameters + self.shape.hidden * self.shape.vocabulary)
        if self.bits == 4:
            read += 2.55 * self.shape.block_parameters
        tokens = assumed.batch * (assumed.prompt + assumed.response / 2)
        return read + 3 * tokens * self.shape.cache_bytes

    def seconds(self, assumed: Assumptions, responses: int) -> float:
        """For so many responses, on one GPU or on as many as hold the model."""
        compute = assumed.compute * assumed.compute_share
        flops = 2 * (self.shape.block_parameters + self.shape.hidden * self.shape.vocabulary)
        moved = self.step_bytes(assumed) / (assumed.bandwidth * assumed.bandwidth_share)
        least = self.shape.layers * assumed.block_seconds
        step = max(moved, assumed.batch * flops / compute, least)
        prompt = max(assumed.batch * assumed.prompt * 2 * self.shape.block_parameters / compute, least)
        return responses / assumed.batch * (prompt + assumed.response * step)

    def memory(self, assumed: Assumptions) -> float:
        """Bytes: weights, cache, logits as the sampler handles them, one block's MLP, running sums, CUDA."""
        rows = assumed.batch
        cache = rows * (assumed.prompt + assumed.response) * self.shape.cache_bytes
        logits = rows * self.shape.vocabulary * 4 * 8  # in float32; the running sum in float64
        mlp = rows * assumed.prompt * self.shape.mlp * 2 * 3
        sums = 2 * rows * self.shape.layers * self.shape.hidden * 4
        return self.weight_bytes + cache + logits + mlp + sums + 1e9


def rows(plans: Sequence[Plan], assumed: Assumptions, factor: float) -> list[tuple[str, ...]]:
    """One line per plan."""
    found = []
    for plan in plans:
        memory = plan.memory(assumed)
        gpus = -(-memory // (0.95 * assumed.gpu_memory))
        persona, roles = (plan.seconds(assumed, count) * factor for count in (PERSONA, ROLE_SET))
        speed = PERSONA * assumed.response / persona
        found.append(
            (
                plan.shape.name,
                "bfloat16" if plan.bits == 16 else "4 bits",
                f"{memory / 1e9:.0f} GB",
                f"{gpus:.0f}",
                short(speed),
                _duration(persona),
                _duration(roles),
                _duration(roles / 8),
            )
        )
    return found


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86400:.1f} d"


def computed(assumed: Assumptions, factor: float = 1.0) -> str:
    """The table."""
    plans = [Plan(shape, bits) for shape in SHAPES.values() for bits in (16, 4)]
    header = ("model", "weights", "memory", "GPUs per process", "response tokens per second")
    header += (f"a persona ({PERSONA})", f"275 roles ({ROLE_SET:,})", "275 roles, 8 processes")
    return table(header, rows(plans, assumed, factor))


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--batch", type=int, nargs="+", default=[32, 128], help="responses written together")
    result.add_argument("--response", type=int, default=Assumptions.response, help="tokens in a response")
    result.add_argument("--bandwidth", type=float, default=Assumptions.bandwidth / 1e12, help="in TB/s")
    result.add_argument("--compute", type=float, default=Assumptions.compute / 1e12, help="in TFLOPS")
    result.add_argument("--gpu-memory", type=float, default=Assumptions.gpu_memory / 1e9, help="in GB")
    result.add_argument(
        "--measure", metavar="DEVICE", nargs="?", const="cpu", help="measure the shares here [cpu]"
    )
    result.add_argument(
        "--measured", metavar="SIZE=TOKENS/S", help="of one model, in bfloat16, in the first --batch"
    )
    result.add_argument("-o", "--output", type=Path)
    return result


def main() -> None:
    """Print the table and what it rests on."""
    options = parser().parse_args()
    assumed = Assumptions(
        bandwidth=options.bandwidth * 1e12,
        compute=options.compute * 1e12,
        gpu_memory=options.gpu_memory * 1e9,
        batch=options.batch[0],
        response=options.response,
    )
    if options.measure:
        assumed = measured(options.measure, assumed)
    factor, basis = (
        1.0,
        "" if str(options.measure).startswith("cuda") else "No extraction was measured on a GPU.",
    )
    if options.measured:
        size, _, speed = options.measured.partition("=")
        plan = Plan(SHAPES[size], 16)
        factor = PERSONA * assumed.response / float(speed) / plan.seconds(assumed, PERSONA)
        basis = (
            f"Scaled so that {plan.shape.name} writes the measured {float(speed):,.0f} tokens per second in "
            f"batches of {assumed.batch}."
        )
    text = f"Computed, not measured. {assumed.described()} {basis}\n"
    for batch in options.batch:
        text += f"\nBatches of {batch}:\n\n{computed(replace(assumed, batch=batch), factor)}\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
