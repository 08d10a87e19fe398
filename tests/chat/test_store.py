"""Sessions on the disk: written as things happen, read whatever happened to the writer."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest

from persona_tui.chat import Conversation, SessionLog, SessionStore
from persona_tui.chat.log import BATCH_TOKENS, read_events
from persona_tui.core.errors import SessionError

from .conftest import answer, say


def begin(store: SessionStore, question: str = "Hello there.") -> tuple[Conversation, SessionLog]:
    log = store.create("builtin", "abc123")
    conversation = Conversation(record=log.record)
    say(conversation, question, "Good", " day.")
    return conversation, log


def lines(log: SessionLog) -> list[str]:
    return log.path.read_text(encoding="utf-8").splitlines()


# --- writing ---


def test_what_was_said_is_there_again(store: SessionStore) -> None:
    conversation, log = begin(store)
    conversation.edit(1, "Hullo. ümläut \N{OWL}")
    log.record("note", text="anything")
    log.close()
    again, events = store.load(log.id)
    assert again.nodes() == conversation.nodes() and again.path() == conversation.path()
    assert events[0].kind == "session" and events[-1].kind == "note"
    assert events[0].fields["model"] == "builtin" and events[0].fields["fingerprint"] == "abc123"
    assert all(json.loads(line)["at"].endswith("Z") for line in lines(log))


def test_a_session_in_which_nothing_happens_leaves_no_file(store: SessionStore) -> None:
    store.create("builtin").close()
    assert store.list() == [] and not store.folder.exists()


def test_tokens_are_written_in_batches_and_never_late(store: SessionStore) -> None:
    log = store.create("builtin")
    conversation = Conversation(record=log.record)
    conversation.add_user("Hello.")
    reply = conversation.begin_reply()
    for token in range(3 * BATCH_TOKENS + 5):
        conversation.extend(reply, " x", token)
        saved, _ = store.load(log.id)
        assert len(saved.node(reply).token_ids) > token - BATCH_TOKENS
    conversation.change_mix({"strength": 1}, reply, 53)
    assert store.load(log.id)[0].nodes()[1].token_ids == list(range(3 * BATCH_TOKENS + 5))
    log.close()
    assert len([line for line in lines(log) if '"tokens"' in line]) < 3 * BATCH_TOKENS


def test_a_closed_session_takes_nothing_more(store: SessionStore) -> None:
    conversation, log = begin(store)
    log.close()
    with pytest.raises(SessionError, match="closed"):
        conversation.add_user("x")


def test_nobody_else_may_read_it(store: SessionStore) -> None:
    _, log = begin(store)
    assert log.path.stat().st_mode & 0o077 == 0


def test_one_writer_at_a_time(store: SessionStore, tmp_path: Path) -> None:
    from persona_tui.core.workspace import Workspace

    conversation, log = begin(store)
    other = SessionStore(Workspace(tmp_path))
    for attempt in (other.open, other.delete, lambda id: other.rename(id, "x")):
        with pytest.raises(SessionError, match=f"{log.id} is open already"):
            attempt(log.id)
    other.load(log.id)  # reading is always possible
    store.rename(log.id, "Mine")
    with pytest.raises(SessionError, match="is open"):
        store.delete(log.id)
    log.close()
    with other.open(log.id) as again:
        conversation.record = again.record
        conversation.add_user("Are you there?")
    assert store.load(log.id)[0].messages() == conversation.messages()
    assert store.info(log.id).title == "Mine"


# --- damage ---


def test_a_torn_last_line_is_passed_over_and_mended(store: SessionStore) -> None:
    _, log = begin(store)
    log.close()
    whole = log.path.read_bytes()
    for cut in range(1, 40):
        log.path.write_bytes(whole[:-cut])
        again, events = store.load(log.id)
        assert len(again) == 2
        assert len(events) == len(lines(log)) - (cut > 1)
    with store.open(log.id) as reopened:
        again.record = reopened.record
        answer(again, again.regenerate(), "Hm.")
    assert [node.text for node in store.load(log.id)[0].path()] == ["Hello there.", "Hm."]


def test_a_session_that_never_got_a_whole_line(store: SessionStore) -> None:
    _, log = begin(store)
    log.close()
    log.path.write_bytes(log.path.read_bytes()[:20])
    for attempt in (store.load, store.open):
        with pytest.raises(SessionError, match="is empty"):
            attempt(log.id)
    store.delete(log.id)
    assert store.list() == []


def test_a_reply_without_an_end_was_interrupted(store: SessionStore) -> None:
    conversation, log = begin(store)
    conversation.extend(conversation.regenerate(), "Go", 1)
    log.close()
    assert store.load(log.id)[0].path()[-1].finish == "interrupted"


@pytest.mark.parametrize(
    ("number", "bad", "message"),
    [
        (1, "{}", ":1 is not an event"),
        (1, '{"kind": "message", "node": 1}', ":1 is not the start"),
        (1, '{"kind": "session", "format": 99, "version": "9.9"}', "newer persona-tui (9.9)"),
        (2, "nonsense", ":2 is not an event"),
        (3, "", ":3 is not an event"),
        (3, '["kind"]', ":3 is not an event"),
        (3, '{"kind": "reply", "node": 2, "parent": 77, "settings": {}}', ":3: this reply does not fit"),
        (3, '{"kind": "reply", "node": 2, "parent": 1, "settings": 5}', ":3: this reply does not fit"),
        (3, '{"kind": "message", "node": 2, "parent": 1, "role": "king", "text": ""}', ":3: this message"),
        (3, '{"kind": "tokens", "node": 8, "ids": [1], "texts": [""]}', ":3: this tokens does not fit"),
        (3, '{"kind": "walk"}', ":3: this walk does not fit"),
        (3, '{"kind": "mix", "mix": {}, "node": 1}', ":3: this mix does not fit"),
        (3, '{"kind": "end", "node": "x", "finish": "stop"}', ":3: this end does not fit"),
    ],
)
def test_other_damage_is_an_error_that_names_the_line(
    store: SessionStore, number: int, bad: str, message: str
) -> None:
    _, log = begin(store)
    log.close()
    content = lines(log)
    content[number - 1] = bad
    log.path.write_text("\n".join(content) + "\n")
    with pytest.raises(SessionError) as caught:
        store.load(log.id)
    assert message in str(caught.value) and str(log.path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(store: SessionStore) -> None:
    _, log = begin(store)
    log.close()
    content = log.path.read_bytes().splitlines(keepends=True)
    content[2] = b"\xff\xfe\x00\n"
    log.path.write_bytes(b"".join(content))
    with pytest.raises(SessionError, match=":3 is not an event"):
        store.load(log.id)


def test_unknown_events_are_passed_over(store: SessionStore) -> None:
    _, log = begin(store)
    log.record("from_the_future", node=77)
    log.close()
    assert len(store.load(log.id)[0]) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(store: SessionStore) -> None:
    store.folder.mkdir()
    store.folder.chmod(0o500)
    with pytest.raises(SessionError, match="cannot be written"):
        begin(store)


def test_a_full_disk_leaves_whole_lines(store: SessionStore) -> None:
    conversation, log = begin(store)
    before, (_, most) = log.path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, most))  # room for a part of a line
    try:
        with pytest.raises(SessionError, match="cannot be written"):
            conversation.edit(1, "Good evening.")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert log.path.read_bytes() == before
    log.record("note", text="there is room again")
    assert store.load(log.id)[1][-1].kind == "note"


def test_a_reply_that_a_full_disk_met_is_whole_once_there_is_room(store: SessionStore) -> None:
    conversation, log = begin(store)
    conversation.add_user("And then?")
    reply = conversation.begin_reply()
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 10, most))
    try:
        with pytest.raises(SessionError, match="cannot be written"):
            for token in range(BATCH_TOKENS + 3):
                conversation.extend(reply, " x", token)
        with pytest.raises(SessionError, match="cannot be written"):
            conversation.finish(reply, "failed")
        with pytest.raises(SessionError, match="cannot be written"):
            conversation.add_user("This was not said.")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    conversation.add_user("There is room again.")
    log.close()
    again, _ = store.load(log.id)
    assert again.nodes() == conversation.nodes()
    assert again.node(reply).token_ids == list(range(BATCH_TOKENS)) and again.node(reply).finish == "failed"
    assert again.messages()[-1]["content"] == "There is room again."


def test_a_file_that_is_none(store: SessionStore) -> None:
    _, log = begin(store)
    os.mkfifo(store.folder / "pipe.jsonl")
    (store.folder / "folder.jsonl").mkdir()
    assert {info.id for info in store.list() if not info.problem} == {log.id}
    for odd in ("pipe", "folder"):
        for attempt in (store.load, store.open, store.delete):
            with pytest.raises(SessionError):
                attempt(odd)


# --- finding ---


def test_the_list_has_the_one_used_last_first(store: SessionStore) -> None:
    ids = [begin(store, question)[1].id for question in ("first", "second one\nwith lines " + "x" * 80)]
    for age, id in enumerate(reversed(ids)):
        os.utime(store.folder / f"{id}.jsonl", (1e9 - age, 1e9 - age))
    latest, other = store.list()
    assert (latest.id, other.id) == (ids[1], ids[0])
    assert other.title == "first" and other.messages == 2 and other.model == "builtin"
    assert latest.title.startswith("second one with lines") and len(latest.title) == 60
    assert latest.used.startswith("2001-09-09") and latest.created > "2024"


def test_a_damaged_session_hides_no_other(store: SessionStore) -> None:
    _, log = begin(store)
    store.folder.joinpath("broken.jsonl").write_text("nonsense\n")
    store.folder.joinpath("empty.jsonl").touch()
    store.folder.joinpath("not a name.jsonl").touch()
    store.folder.joinpath("other.txt").touch()
    problems = {info.id: info.problem for info in store.list()}
    assert set(problems) == {log.id, "broken", "empty"}
    assert problems[log.id] is None
    assert "broken.jsonl:1" in str(problems["broken"]) and "empty" in str(problems["empty"])
    assert [hit.session.id for hit in store.search("GOOD DAY")] == [log.id]


def test_searching_looks_at_all_branches_and_titles(store: SessionStore) -> None:
    conversation, log = begin(store)
    conversation.edit(1, "x" * 100 + " Straße [a-z] " + "y" * 100)
    conversation.rename("About Roads")
    log.close()
    (hit,) = store.search("[a-z]")
    assert hit.node == 3 and hit.role == "user"
    assert hit.excerpt.startswith("…x") and hit.excerpt.endswith("y…") and "Straße [a-z]" in hit.excerpt
    assert [each.node for each in store.search("day.")] == [2]
    assert [(each.node, each.excerpt) for each in store.search("about roads")] == [(None, "About Roads")]
    assert store.search("absent") == []


def test_sessions_can_be_meant_in_short(store: SessionStore) -> None:
    with pytest.raises(SessionError, match="no sessions yet"):
        store.resolve("last")
    first, second = begin(store)[1], begin(store)[1]
    for log, age in ((first, 0), (second, 5)):
        log.close()
        os.utime(log.path, (1e9 - age, 1e9 - age))
    store.rename(second.id, "Two Words")
    os.utime(second.path, (1e8, 1e8))
    assert store.resolve("last") == first.id
    assert store.resolve("two words") == second.id
    assert store.resolve(first.id) == first.id
    with pytest.raises(SessionError, match="say which"):
        store.resolve("20")
    with pytest.raises(SessionError, match="no session"):
        store.resolve("nothing")
    for odd in ("../config", "", "a/b"):
        with pytest.raises(SessionError, match="no session"):
            store.open(odd)


def test_deleting(store: SessionStore) -> None:
    _, log = begin(store)
    log.close()
    trashed = store.delete(log.id)
    assert store.list() == [] and trashed.kept.is_file()
    for attempt in (store.delete, store.load, store.open):
        with pytest.raises(SessionError, match="no session"):
            attempt(log.id)


def test_lists_do_not_parse_tokens(store: SessionStore) -> None:
    _, log = begin(store)
    log.close()
    assert [event.kind for event in read_events(log.path, skip=("tokens",))] == [
        "session",
        "message",
        "reply",
        "end",
    ]
