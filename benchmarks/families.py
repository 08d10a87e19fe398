"""Which architectures work: every decoder that transformers can build small, through the tests of families.

Each is built with random weights, tried as at loading, and put through every test of
`tests/model/test_families.py`: blocks, activations, caches, padding, steering, floors, batches.

    python benchmarks/families.py            # prints the table
    python benchmarks/families.py --write    # writes it into docs/models.md
"""

from __future__ import annotations

import argparse
import inspect
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.simplefilter("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers.utils import logging  # noqa: E402

from persona_tui.model import ModelWrapper  # noqa: E402
from persona_tui.model.trial import try_model  # noqa: E402
from tests.model import test_families  # noqa: E402
from tests.model.architectures import NO_DECODERS, architectures, small_model  # noqa: E402
from tests.model.conftest import make_tokenizer  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
SECONDS = 120


@dataclass(frozen=True)
class Outcome:
    """What came out for one architecture: "works", "refused", "fails" or "not built", and why."""

    kind: str
    state: str
    detail: str = ""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("names", nargs="*", help="architectures; all by default")
    arguments.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name}")
    chosen = arguments.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    outcomes = []
    for kind in chosen.names or architectures():
        outcomes.append(outcome(kind))
        print(f"{outcomes[-1].state:<10} {kind:<28} {outcomes[-1].detail}", flush=True)
    if chosen.write:
        write(outcomes)


def outcome(kind: str) -> Outcome:
    """Put one architecture through everything."""
    try:
        with at_most(SECONDS):
            model = small_model(kind)
    except Exception as error:
        return Outcome(kind, "not built", one_line(error))
    try:
        with at_most(SECONDS):
            trial = try_model(model, make_tokenizer())
            if trial.reason:
                return Outcome(kind, "refused", trial.reason)
            wrapper = ModelWrapper(model, make_tokenizer(), kind)
            wrapper.own_cache = trial.own_cache
            failed = [name for name, test in tests() if not passes(test, wrapper)]
    except Exception as error:
        return Outcome(kind, "refused", one_line(error))
    if failed:
        return Outcome(kind, "fails", ", ".join(failed))
    return Outcome(kind, "works", "with a cache of its own" if trial.own_cache else "")


def tests() -> Iterator[tuple[str, Callable[..., None]]]:
    """The tests of families, by name."""
    for name, test in vars(test_families).items():
        if name.startswith("test_"):
            yield name.removeprefix("test_"), test


def passes(test: Callable[..., None], wrapper: ModelWrapper) -> bool:
    """Whether a test passes; what fails in any way does not."""
    given = {"any_wrapper": wrapper, "random_vector": random_vector}
    try:
        test(**{name: given[name] for name in inspect.signature(test).parameters})
    except Exception:
        return False
    return True


def random_vector(seed: int, *rows: int, unit: bool = False) -> torch.Tensor:
    """As the tests' fixture of this name."""
    vector = torch.randn(*rows, 32, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm() if unit else vector


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Give up with a TimeoutError after some seconds of computing."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"takes longer than {seconds} s")

    signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def write(outcomes: list[Outcome]) -> None:
    """Put the table into the page."""
    count = {
        state: [each for each in outcomes if each.state == state]
        for state in ("works", "refused", "fails", "not built")
    }
    lines = [
        f"transformers {transformers.__version__}, torch {torch.__version__}, random weights, float32 on a "
        f"CPU: {len(count['works'])} of {len(outcomes)} decoders work, {len(count['refused'])} are refused "
        "at loading.",
        "",
        "**Work:** "
        + ", ".join(f"{each.kind}{' (its own cache)' if each.detail else ''}" for each in count["works"])
        + ".",
        "",
        "| refused at loading | why |",
        "| --- | --- |",
        *(f"| {each.kind} | {each.detail} |" for each in count["refused"]),
        "",
        "| load, but a test fails | which |",
        "| --- | --- |",
        *(f"| {each.kind} | {each.detail} |" for each in count["fails"]),
        "",
        "**Could not be built small here,** so nothing is known: "
        + (", ".join(each.kind for each in count["not built"]) or "none")
        + ".",
        "",
        "**Not tried,** because they are not standalone decoders: " + ", ".join(sorted(NO_DECODERS)) + ".",
    ]
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    PAGE.write_text(
        f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{rest.split(END)[1]}", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
