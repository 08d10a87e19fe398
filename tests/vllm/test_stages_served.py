"""A server of two pipeline stages: several passes are under way at once; each stage knows half of a reply."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Server, serving
from .test_plugin import engine
from .test_serve import (
    test_a_mix_changes_while_its_reply_streams,
    test_a_reply_is_compared_with_whom_a_request_names,
    test_answers_tell_what_was_found,
    test_three_ways_to_say_who_speaks,
)
from .test_stages import pytestmark
from .test_url import (
    inside,
    key,
    ours,
    test_a_mix_that_changes_while_it_speaks,
    test_a_stream_tells_the_same,
    test_guided_replies_beside_others,
    test_likelihoods,
    test_replies_and_their_means,
    test_replies_are_added_up_where_they_were_written,
    test_what_is_read_of_text,
    test_who_gives_up_leaves_nothing_behind,
)

__all__ = [
    "engine",
    "inside",
    "key",
    "ours",
    "pytestmark",
    "test_a_mix_changes_while_its_reply_streams",
    "test_a_mix_that_changes_while_it_speaks",
    "test_a_reply_is_compared_with_whom_a_request_names",
    "test_a_stream_tells_the_same",
    "test_answers_tell_what_was_found",
    "test_guided_replies_beside_others",
    "test_likelihoods",
    "test_replies_and_their_means",
    "test_replies_are_added_up_where_they_were_written",
    "test_three_ways_to_say_who_speaks",
    "test_what_is_read_of_text",
    "test_who_gives_up_leaves_nothing_behind",
]


@pytest.fixture(scope="module")
def server(model_folder: Path, workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("stages") / "log"
    with serving(model_folder, workspace, log, "--pipeline-parallel-size=2") as found:
        yield found
