"""A server of two data-parallel copies: whichever writes a reply tells its figures and changes its mix."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .conftest import Server, serving
from .test_plugin import engine
from .test_serve import (
    ASKED,
    send,
    slug,
    test_a_mix_changes_while_its_reply_streams,
    test_answers_tell_what_was_found,
    test_three_ways_to_say_who_speaks,
)

__all__ = [
    "engine",
    "test_a_mix_changes_while_its_reply_streams",
    "test_answers_tell_what_was_found",
    "test_three_ways_to_say_who_speaks",
]


@pytest.fixture(scope="module")
def server(model_folder: Path, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("copies") / "log"
    with serving(model_folder, workspace, log, "--data-parallel-size=2") as found:
        yield found


def test_every_reply_has_its_figures(server: Server) -> None:
    asked = {"persona": "sage", "strength": 0.7, "capping": True, "percentile": 90}
    body = {"model": slug(server.url), **ASKED, "persona_tui": asked}
    with ThreadPoolExecutor(6) as asking:  # so many at a time that each copy has some
        answers = list(asking.map(lambda _: send(server.url, body), range(12)))
    told = [each[1]["choices"][0]["persona_tui"] for each in answers]
    for each in told:
        assert each["capped_tokens"] == told[0]["capped_tokens"] > 0
        assert each["projections"] == pytest.approx(told[0]["projections"], rel=1e-3)
