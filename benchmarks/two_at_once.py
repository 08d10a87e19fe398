"""What A/B costs: two answers as two rows of one batch, against one after the other; and reading one again.

    python benchmarks/two_at_once.py [--tokens 200] [--repetitions 7] [--threads 1]

The tiny model answers one question with two mixes and one seed. Both ways have to write the same tokens.
Reading again is what the inspector does with a reply whose projections nobody kept.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from measuring import REPOSITORY, Cost, machine, middle, set_threads, table, take_turns

from persona_tui.core.mix import Mix
from persona_tui.model import Sampling, conversation
from persona_tui.project.project import Project
from persona_tui.steering.engine import SteeringEngine

ASKED = conversation("Tell me a long story about a lighthouse.")
MIXES = (Mix({"sage": 1.0}, 0.3), Mix())


class Answers:
    """The three ways, each returning how many tokens it was about."""

    def __init__(self, engine: SteeringEngine, tokens: int) -> None:
        self._engine = engine
        self._sampling = Sampling(tokens, seed=3)
        self.beside: list[list[int]] = []
        self.after: list[list[int]] = []

    def as_rows(self) -> float:
        """Both answers as rows of one batch."""
        events = list(self._engine.stream_rows(ASKED, MIXES, sampling=self._sampling))
        self.beside = [[each.token_id for each in events if each.row == row] for row in range(len(MIXES))]
        return sum(map(len, self.beside))

    def one_after_the_other(self) -> float:
        """The same answers on their own."""
        said = [list(self._engine.stream(ASKED, mix=mix, sampling=self._sampling)) for mix in MIXES]
        self.after = [[each.token_id for each in events] for events in said]
        return sum(map(len, self.after))

    def read_again(self) -> float:
        """Both answers read again, one pass each."""
        for mix, tokens in zip(MIXES, self.after, strict=True):
            self._engine.reread_reply(ASKED, tokens, {0: mix})
        return sum(map(len, self.after))


def measured(tokens: int, repetitions: int) -> tuple[dict[str, Cost], bool]:
    """The median costs per token, and whether both ways wrote the same."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("datasets", "vectors"):
            ignored = shutil.ignore_patterns("partial", "loaded.json")
            shutil.copytree(REPOSITORY / name, Path(folder) / name, ignore=ignored)
        shutil.copy(REPOSITORY / "config.yaml", folder)
        engine = Project.open(Path(folder), "builtin").engine
        engine.model._end_tokens = frozenset()  # all answers are equally long
        answers = Answers(engine, tokens)
        ways = {
            "two rows of one batch": answers.as_rows,
            "one after the other": answers.one_after_the_other,
            "reading both again": answers.read_again,
        }
        for way in ways.values():
            way()
        costs = take_turns(ways, repetitions)
    return {name: middle(each) for name, each in costs.items()}, answers.beside == answers.after


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=200, help="in an answer")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    set_threads(options.threads)
    print(machine())
    found, same = measured(options.tokens, options.repetitions)
    base = found["one after the other"]
    rows = [
        (name, 1000 * cost.wall, 1000 * cost.cpu, base.wall / cost.wall, base.cpu / cost.cpu)
        for name, cost in found.items()
    ]
    print(table(("way", "ms a token", "CPU ms a token", "times as fast", "by CPU time"), rows))
    print(f"The tokens are {'the same' if same else 'NOT the same'} either way.")


if __name__ == "__main__":
    main()
