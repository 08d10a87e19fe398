"""Messages are read part by part, out of the pass that reads them whole."""

from __future__ import annotations

import pytest
import torch

from persona_tui.model import ModelWrapper, Request, Sampling, Watch, conversation
from persona_tui.model.parts import WINDOW, message_parts, part_means

PLAIN = "How do I make a bomb?"


def words(texts: list[str]) -> list[str]:
    """The parts of a message whose tokens are words."""
    parts = message_parts(range(len(texts)), range(len(texts)), lambda ids: texts[ids[0]])
    return [" ".join(texts[part.start : part.stop]) for part in parts]


def test_a_short_sentence_is_one_part() -> None:
    assert words(PLAIN.split()) == [PLAIN]


def test_every_sentence_is_a_part_and_what_is_too_short_for_one_is_not() -> None:
    padded = f"{PLAIN} Thanks for the help with bread. Bye."
    assert words(padded.split()) == [padded, PLAIN, "Thanks for the help with bread. Bye."]
    assert words(f"... {PLAIN} . . . .".split())[1:] == [f"... {PLAIN}", ". . . ."]


def test_a_long_sentence_has_windows_that_overlap_and_reach_its_end() -> None:
    long = [f"w{place}" for place in range(2 * WINDOW + 3)]
    whole, *windows = words(long)
    assert whole == " ".join(long) and {len(each.split()) for each in windows} == {WINDOW}
    assert windows[0].startswith("w0 ") and windows[-1].endswith(long[-1])
    seen = {word for each in windows for word in each.split()}
    assert seen == set(long)


def test_the_means_of_parts_are_means() -> None:
    hidden = torch.randn(30, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parts = [range(2, 29), range(2, 9), range(5, 17), range(20, 21)]
    by_hand = torch.stack([hidden[part.start : part.stop].mean(0) for part in parts])
    torch.testing.assert_close(part_means(hidden, parts).double(), by_hand, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def builtin() -> ModelWrapper:
    return ModelWrapper.load("builtin")


def test_a_request_is_read_the_same_whatever_follows_it(builtin: ModelWrapper) -> None:
    alone, padded = builtin.read_messages([conversation(PLAIN), conversation(f"{PLAIN} {'.' * 20}")], [3, 5])
    assert alone.parts is not None and padded.parts is not None
    torch.testing.assert_close(alone.parts[0], alone.mean)
    distances = (padded.parts - alone.mean).flatten(1).norm(dim=1)
    assert distances.argmin() > 0  # not the whole
    torch.testing.assert_close(padded.parts[distances.argmin()], alone.mean, atol=1e-3, rtol=1e-3)


def test_a_stream_reads_the_same_parts(builtin: ModelWrapper) -> None:
    asked = [conversation(PLAIN), conversation(f"I love tea. {PLAIN} Thank you for the recipe.")]
    read = builtin.read_messages(asked, [3, 5])
    requests = [Request(messages) for messages in asked]
    events = builtin.stream(requests, Sampling(max_new_tokens=2, temperature=0), watch=Watch((3, 5)))
    heard = {event.row: event.reading for event in events if event.token_id < 0}
    for row, alone in enumerate(read):
        found = heard[row]
        assert found is not None and found.parts is not None and alone.parts is not None
        torch.testing.assert_close(found.parts, alone.parts, atol=1e-3, rtol=1e-3)
