"""What replacing finished rows at once (continuous batching) would save at most, on the tiny model.

    python benchmarks/idle_rows.py [--prompts 128] [--batch 32]

Responses end where they end. A row that has finished stays in its batch until half of the batch has; then
only the others go on. Counted are the rows that all passes had, and those that wrote a token that is kept.
"""

from __future__ import annotations

import argparse
from statistics import fmean

from measuring import BUILTIN, make_model, table
from sides import extractor, persona_requests


def counted(prompts: int, batch: int, tokens: int) -> tuple[int, int, list[int]]:
    """Rows in all decoding passes, rows that wrote, and the lengths of the responses."""
    from persona_tui.model import ModelWrapper

    wrapper = ModelWrapper(*make_model(BUILTIN), BUILTIN)
    runner = extractor(wrapper, range(wrapper.n_layers), batch, tokens)
    passes: list[int] = []

    def count(module: object, arguments: tuple[object, ...], output: object) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        passes.append(len(hidden) if hidden.shape[1] == 1 else 0)  # not the prompts

    lengths: list[int] = []
    handle = wrapper.model.get_decoder().layers[0].register_forward_hook(count)
    try:
        for start in range(0, prompts, batch):
            some = persona_requests(prompts)[start : start + batch]
            lengths += [len(each.token_ids) for each in wrapper.generate(some, runner.sampling)]
    finally:
        handle.remove()
    return sum(passes), sum(lengths), lengths


def main() -> None:
    """Print the count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256, help="the most in a response")
    options = parser.parse_args()
    rows, useful, lengths = counted(options.prompts, options.batch, options.tokens)
    found = (options.batch, f"{fmean(lengths):.0f}", max(lengths), rows, useful, f"{useful / rows:.0%}")
    header = ("batch", "tokens in a response", "at most", "rows of all passes", "of these writing", "share")
    print(table(header, [found]))


if __name__ == "__main__":
    main()
