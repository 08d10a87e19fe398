"""What steering, capping and summing up cost while tokens are written; eager and compiled.

    python benchmarks/decoding.py [--model starter] [--rows 1 16 64]      a model of a workspace
    python benchmarks/decoding.py --shape 7b --device cuda                Qwen2.5-7B's shape, random weights
    python benchmarks/decoding.py --compile …                             with `model.compile`, too

Tokens per second of the same requests: by transformers' own `generate`, then by this engine plain, steered,
steered and capped, and with the means of all layers. In turns; the fastest of several rounds, and its ratio
to the engine's plain line. Every side writes exactly as many tokens: nothing ends a turn early.
Random vectors at 30-60% of the layers, small enough to change little.

With --compile: how long compiling takes, and how many greedy replies are those of the eager model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from inside_vllm import HEADER, asked, compared, ways
from measuring import SHAPES, machine, make_model, peak_memory, set_threads, table

if TYPE_CHECKING:
    from persona_tui.model import Interventions, ModelWrapper, Request, Sampling


def loaded(options: argparse.Namespace) -> ModelWrapper:
    """A model that ends no turn."""
    from persona_tui.model import ModelWrapper

    if options.shape:
        model, tokenizer = make_model(options.shape, options.device, options.dtype)
        wrapper = ModelWrapper(model, tokenizer, options.shape)
    else:
        wrapper = ModelWrapper.load(options.model, device=options.device, dtype=options.dtype)
    wrapper._end_tokens = frozenset()
    wrapper.model.generation_config.eos_token_id = None
    return wrapper


def by_transformers(model: ModelWrapper, requests: list[Request], sampling: Sampling) -> float:
    """Write with `generate`; how many tokens."""
    model.tokenizer.padding_side = "left"
    model.tokenizer.pad_token = model.tokenizer.pad_token or model.tokenizer.eos_token
    prompts = [model.render(each.messages) for each in requests]
    inputs = model.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    found = model.model.generate(
        **{name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")},
        max_new_tokens=sampling.max_new_tokens,
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        pad_token_id=model.tokenizer.pad_token_id,
    )
    return float(len(requests) * (found.shape[1] - inputs["input_ids"].shape[1]))


def sides_of(
    model: ModelWrapper, requests: list[Request], sampling: Sampling
) -> dict[str, Callable[[], float]]:
    """Each side writes the same requests, and returns how many tokens that took."""
    known = ways(model)

    def written(way: Interventions, layers: range = range(0)) -> float:
        return float(sum(len(each.token_ids) for each in model.generate(requests, sampling, way, layers)))

    sides = {name: partial(written, way) for name, way in known.items()}
    means = {"steered, means of all layers": partial(written, known["steered"], range(model.n_layers))}
    return {**sides, **means}


def measured(model: ModelWrapper, rows: list[int], sampling: Sampling, repeats: int, what: str) -> None:
    """Print the table of one way to run a model."""
    lines = []
    for count in rows:
        requests = asked(count)
        sides = sides_of(model, requests, sampling)
        if what == "eager":
            sides["transformers' generate"] = partial(by_transformers, model, requests, sampling)
        lines += [(count, *line) for line in compared(sides, repeats)]
        print(f"{what}, {count} rows: {lines[-len(sides)][2]} tokens/s plain", flush=True)
    print(
        f"\n{what.capitalize()}\n\n{table(HEADER, lines)}\n\nPeak memory {peak_memory():,.0f} MiB.\n",
        flush=True,
    )


def difference(model: ModelWrapper, rows: list[int]) -> None:
    """Print what compiling takes, and how far its greedy replies follow the eager ones."""
    from persona_tui.model import Sampling

    way, sampling = ways(model)["capped"], Sampling(32, 0.0)
    expected = [model.generate(asked(count), sampling, way) for count in rows]
    model.compile()
    for count, replies in zip(rows, expected, strict=True):
        began = time.perf_counter()
        model.generate(asked(count), Sampling(3, 0.0), way)
        took = time.perf_counter() - began
        found = model.generate(asked(count), sampling, way)
        same = sum(one.token_ids == other.token_ids for one, other in zip(found, replies, strict=True))
        print(
            f"{count} rows: compiled in {took:.1f} s; {same} of {count} greedy replies of 32 tokens equal",
            flush=True,
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape instead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="by default float32, on cuda bfloat16")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    options.dtype = options.dtype or ("bfloat16" if options.device.startswith("cuda") else "float32")

    import torch

    from persona_tui.model import Sampling

    set_threads(options.threads)
    torch.set_grad_enabled(False)
    model = loaded(options)
    print(f"{options.shape or options.model}, {options.dtype}; {machine(options.device)}\n", flush=True)
    sampling = Sampling(options.tokens, 0.7, 0.95)
    measured(model, options.rows, sampling, options.repeats, "eager")
    if options.compile:
        difference(model, options.rows)
        measured(model, options.rows, sampling, options.repeats, "compiled")


if __name__ == "__main__":
    main()
