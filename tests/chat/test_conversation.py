"""The tree of messages: growing, branching, walking, and what of it a model is given."""

from __future__ import annotations

from typing import Any

import pytest

from persona_tui.chat import Conversation, Node, fit_context
from persona_tui.core.errors import SessionError

from .conftest import answer, say


def texts(conversation: Conversation) -> list[str]:
    return [node.text for node in conversation.path()]


# --- growing ---


def test_turns_follow_each_other() -> None:
    conversation = Conversation()
    assert conversation.messages() == [] and conversation.path() == []
    reply = say(conversation, "Hello?", " Good", " day. ")
    say(conversation, "And now?", "Bye.")
    assert conversation.messages() == [
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Bye."},
    ]
    assert conversation.node(reply).token_ids == [0, 1]
    assert conversation.messages(until=reply) == conversation.prompt(reply) == conversation.messages()[:1]
    assert conversation.siblings(reply) == (0, 1)


def test_a_reply_without_a_word_does_not_count() -> None:
    conversation = Conversation()
    say(conversation, "Hello?")
    say(conversation, "Is anybody there?", "Yes.")
    assert conversation.messages()[0] == {"role": "user", "content": "Hello?\n\nIs anybody there?"}
    assert len(conversation.messages()) == 2 and len(conversation) == 4


def test_nothing_is_answered_twice_or_out_of_nowhere() -> None:
    conversation = Conversation()
    for impossible in (conversation.begin_reply, conversation.regenerate, conversation.continue_reply):
        with pytest.raises(SessionError):
            impossible()
    say(conversation, "Hello?", "Yes.")
    with pytest.raises(SessionError, match="nothing to answer"):
        conversation.begin_reply()
    with pytest.raises(SessionError, match="no message 9"):
        conversation.edit(9, "x")
    assert len(conversation) == 2


def test_the_end_of_a_character_may_come_after_the_last_token() -> None:
    conversation = Conversation()
    conversation.add_user("Hello?")
    reply = conversation.begin_reply()
    conversation.extend(reply, "caf", 1)
    conversation.extend(reply, "", 2)
    conversation.extend(reply, "é", -1)
    node = conversation.node(reply)
    assert (node.text, node.token_ids, node.token_texts) == ("café", [1, 2], ["caf", "é"])


# --- branches ---


def test_editing_makes_a_branch_and_both_are_kept() -> None:
    conversation = Conversation()
    say(conversation, "one", "1")
    say(conversation, "two", "2")
    first = conversation.path()[0].id
    edited = conversation.edit(first, "uno")
    assert texts(conversation) == ["uno"] and conversation.siblings(edited) == (1, 2)
    assert conversation.node(edited).edit_of == first
    answer(conversation, conversation.begin_reply(), "I")
    assert texts(conversation) == ["uno", "I"]
    assert conversation.walk(edited, -1) == first
    assert texts(conversation) == ["one", "1", "two", "2"]
    assert conversation.walk(first, 1) == edited
    assert texts(conversation) == ["uno", "I"]


def test_the_path_remembers_where_it_went_on_every_branch() -> None:
    conversation = Conversation()
    say(conversation, "one", "1")
    second = conversation.add_user("two")
    answer(conversation, conversation.begin_reply(), "2")
    answer(conversation, conversation.regenerate(), "II")
    conversation.edit(second, "three")
    conversation.walk(conversation.path()[-1].id, -1)
    assert texts(conversation) == ["one", "1", "two", "II"]


def test_regenerating_makes_a_sibling() -> None:
    conversation = Conversation()
    first = say(conversation, "one", "1")
    say(conversation, "two", "2")
    again = conversation.regenerate(first)
    answer(conversation, again, "I")
    assert conversation.siblings(again) == (1, 2)
    assert conversation.prompt(again) == [{"role": "user", "content": "one"}]
    assert texts(conversation) == ["one", "I"]
    third = answer(conversation, conversation.regenerate(), "i")
    assert conversation.siblings(third) == (2, 3)


def test_regenerating_answers_what_has_no_answer() -> None:
    conversation = Conversation()
    conversation.add_user("one")
    answer(conversation, conversation.regenerate(), "1")
    assert texts(conversation) == ["one", "1"]


def test_beyond_the_last_sibling_there_is_nothing() -> None:
    conversation = Conversation()
    reply = say(conversation, "one", "1")
    other = answer(conversation, conversation.regenerate(), "I")
    assert conversation.walk(other, 1) == other
    assert conversation.walk(other, -7) == reply
    assert conversation.walk(reply, -1) == reply


def test_a_message_on_any_branch_can_be_gone_to() -> None:
    conversation = Conversation()
    say(conversation, "one", "1")
    last = say(conversation, "two", "2")
    conversation.edit(conversation.path()[0].id, "uno")
    conversation.go_to(last)
    assert texts(conversation) == ["one", "1", "two", "2"]


def test_a_reply_can_be_edited() -> None:
    conversation = Conversation()
    edited = conversation.edit(say(conversation, "one", "1"), "No.")
    assert conversation.messages()[-1] == {"role": "assistant", "content": "No."}
    assert conversation.node(edited).runs == []


def test_only_a_leaf_can_be_taken_back() -> None:
    conversation = Conversation()
    reply = say(conversation, "one", "1")
    other = answer(conversation, conversation.regenerate(), "I")
    with pytest.raises(SessionError, match="follow"):
        conversation.drop(conversation.path()[0].id)
    conversation.drop(other)
    assert texts(conversation) == ["one", "1"] and conversation.siblings(reply) == (0, 1)
    assert conversation.add_user("two") > other  # no number is used twice


# --- continuing ---


def test_continuing_lengthens_the_last_reply() -> None:
    conversation = Conversation()
    reply = say(conversation, "one", " Good", " day")
    assert conversation.continue_reply() == reply
    assert conversation.prompt(reply) == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "Good day"},
    ]
    answer(conversation, reply, "s", ".")
    node = conversation.node(reply)
    assert node.text == " Good days." and [run.start for run in node.runs] == [0, 2]
    assert conversation.run_tokens(reply, 0) == conversation.run_tokens(reply, 1) == [0, 1]
    assert conversation.prompt(reply, 0) == [{"role": "user", "content": "one"}]


def test_what_cannot_be_continued() -> None:
    conversation = Conversation()
    conversation.add_user("one")
    with pytest.raises(SessionError, match="not a reply"):
        conversation.continue_reply()
    conversation.extend(conversation.begin_reply(), "1", 1)
    with pytest.raises(SessionError, match="still being written"):
        conversation.continue_reply()


def test_rulers_lie_where_the_mix_changed() -> None:
    conversation = Conversation()
    conversation.add_user("one")
    reply = conversation.begin_reply({"mix": {"strength": 0.1}})
    for token, word in enumerate(("Good", " day", ".")):
        conversation.extend(reply, word, token)
    conversation.change_mix({"strength": 0.1}, reply, 0)  # nothing new
    conversation.change_mix({"strength": 0.2}, reply, 1)
    conversation.finish(reply)
    conversation.continue_reply({"mix": {"strength": 0.2}})
    conversation.extend(reply, " Bye", 3)
    conversation.extend(reply, ".", 4)
    conversation.change_mix({"strength": 0.3}, reply, 1)
    node = conversation.node(reply)
    assert node.rulers() == [(4, {"strength": 0.2}), (len("Good day. Bye"), {"strength": 0.3})]
    assert conversation.mix == {"strength": 0.3}


# --- events ---


def test_the_same_events_make_the_same_conversation() -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    conversation = Conversation(record=lambda kind, **fields: events.append((kind, fields)))
    first = say(conversation, "one", "1")
    say(conversation, "two", "2")
    conversation.set_system("Be brief.")
    conversation.drop(answer(conversation, conversation.regenerate(first)))
    answer(conversation, conversation.regenerate(first), "I")
    conversation.edit(conversation.path()[0].id, "uno")
    conversation.walk(conversation.path()[0].id, -1)
    conversation.rename(" A  title ")
    again = Conversation()
    for kind, fields in events:
        again.apply(kind, fields)
    assert again.nodes() == conversation.nodes()
    assert again.path() == conversation.path()
    assert (again.system, again.title) == ("Be brief.", "A title")
    assert [again.siblings(node.id) for node in again.nodes()] == [
        conversation.siblings(node.id) for node in conversation.nodes()
    ]


# --- the context ---


TURNS = [{"role": role, "content": "x" * 10} for _ in range(4) for role in ("user", "assistant")]
ASKED = [*TURNS, {"role": "user", "content": "x" * 10}]


def count(messages: list[dict[str, str]]) -> int:
    return sum(len(message["content"]) for message in messages)


@pytest.mark.parametrize(
    ("context", "forgotten", "tokens"),
    [(None, 0, 90), (200, 0, 90), (110, 0, 90), (109, 2, 70), (55, 6, 30), (35, 8, 10), (12, 8, 10)],
)
def test_the_oldest_turns_give_way(context: int | None, forgotten: int, tokens: int) -> None:
    fitted = fit_context(ASKED, count, context, 20)
    assert (fitted.forgotten, fitted.prompt_tokens) == (forgotten, tokens)
    assert fitted.messages == ASKED[forgotten:] and fitted.messages[0]["role"] == "user"


def test_the_system_prompt_and_what_was_begun_stay() -> None:
    fitted = fit_context(ASKED, count, 60, 20, system="s" * 15)
    assert (fitted.forgotten, fitted.prompt_tokens) == (8, 25)
    begun = [*TURNS[:-1], {"role": "assistant", "content": "x" * 5}]
    assert fit_context(begun, count, 30, 10).messages == begun[6:]
    assert fit_context(ASKED, count, 60, 20, begun=15).forgotten == 8


class _Counted(Conversation):
    """Counts the messages that are walked through while it grows."""

    steps = 0

    def lineage(self, id: int) -> list[Node]:
        found = super().lineage(id)
        self.steps += len(found)
        return found

    def path(self) -> list[Node]:
        found = super().path()
        self.steps += len(found)
        return found


def test_a_long_conversation_grows_without_being_walked_through() -> None:
    conversation = _Counted()
    for turn in range(2000):
        conversation.add_user(f"question {turn}")
        conversation.finish(conversation.begin_reply())
        conversation.finish(conversation.regenerate())
    assert conversation.steps == 0 and len(conversation.path()) == 4000
    assert [node.id for node in conversation.path()][:5] == [1, 3, 4, 6, 7]
    last = conversation.path()[-1].id
    conversation.drop(last)
    assert conversation.path()[-1].id == last - 1
    conversation.go_to(2)
    conversation.add_user("elsewhere")
    assert [node.id for node in conversation.path()] == [1, 2, last + 1]
