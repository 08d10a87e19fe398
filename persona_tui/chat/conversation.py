"""A conversation as a tree of messages: what was edited or written again becomes a branch, and all are kept.

1. Every message has a parent; messages with the same parent are siblings, of which one is chosen.
2. The path leads from the first message along the chosen ones. It is what is on the screen.
3. Every change is an event. `Conversation` applies it and hands it to `record`, which writes it down (see
   `log.SessionLog`); applying the same events again gives the same tree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from persona_tui.core.errors import SessionError

Role = Literal["user", "assistant"]
Message = dict[str, str]
Record = Callable[..., None]

SPOKEN = ("tokens", "end")  # kinds of events: what a model has said
_ROOT = 0  # the parent of first messages


@dataclass(frozen=True)
class Change:
    """Another mix took effect while a reply was being written.

    Attributes:
        index: the first token that was chosen with it, counted from the beginning of its run.
        mix: what was spoken with from there on (see `SteeringEngine.describe`).
    """

    index: int
    mix: dict[str, Any]


@dataclass
class Run:
    """One stretch of writing without a break. A reply that was continued has several.

    Attributes:
        settings: how it was written: `sampling`, `mix`, `system`, `model` and so on.
        start: how many of the reply's tokens were there before.
        offset: how many characters of its text were there before.
        changes: other mixes that took effect meanwhile, in order.
        finish: "stop", "length", "cancelled", "refused" (by a guard), "failed", "interrupted" (the program
            ended); None = under way.
        stats: what is known of it afterwards: tokens, seconds and so on.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    start: int = 0
    offset: int = 0
    changes: list[Change] = field(default_factory=list)
    finish: str | None = None
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def mix(self) -> dict[str, Any] | None:
        """The mix it was last written with; None if that is not known."""
        return self.changes[-1].mix if self.changes else self.settings.get("mix")


@dataclass
class Node:
    """A message.

    Attributes:
        id: its number in the conversation, from 1.
        role: "user" or "assistant".
        parent: the message that it follows; None for a first one.
        text: as it was typed or written, white space included.
        token_ids: of a reply, with the end of the turn; empty if it was typed.
        token_texts: what each of them added to `text`.
        runs: how a reply was written; empty if it was typed.
        edit_of: the message that this one was written in place of, if any.
    """

    id: int
    role: Role
    parent: int | None
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    token_texts: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    edit_of: int | None = None

    @property
    def finish(self) -> str | None:
        """How writing it ended last; None while it is being written, or if it was typed."""
        return self.runs[-1].finish if self.runs else None

    @property
    def writing(self) -> bool:
        """Whether it is a reply that has not ended."""
        return bool(self.runs) and self.finish is None

    def rulers(self) -> list[tuple[int, dict[str, Any]]]:
        """Return where in `text` another mix took effect: the place, in characters, and the mix."""
        return [
            (run.offset + len("".join(self.token_texts[run.start : run.start + change.index])), change.mix)
            for run in self.runs
            for change in run.changes
        ]


class Conversation:
    """A tree of messages and the path through it that is being read.

    Attributes:
        system: the system prompt, if any; change it with `set_system`.
        title: given by the user; None = none was given. Change it with `rename`.
        mix: the mix that was last spoken with, None before the first reply.
        mixes_after: the mix that was chosen last while a message was the end of the path, by message.
        record: told of every event, as `record(kind, **fields)`; None = nothing is written down.
    """

    def __init__(self, record: Record | None = None, system: str | None = None) -> None:
        self.record = record
        self.system = system
        self.title: str | None = None
        self.mix: dict[str, Any] | None = None
        self._nodes: dict[int, Node] = {}
        self._children: dict[int, list[int]] = {_ROOT: []}
        self._chosen: dict[int, int] = {}
        self.mixes_after: dict[int, dict[str, Any]] = {}
        self._tip = _ROOT  # where the path ends
        self._last = 0

    # Reading ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many messages there are, on all branches."""
        return len(self._nodes)

    def node(self, id: int) -> Node:
        """Return a message.

        Raises:
            SessionError: no message has this number.
        """
        if id not in self._nodes:
            raise SessionError(f"there is no message {id} in this conversation")
        return self._nodes[id]

    def nodes(self) -> list[Node]:
        """Return all messages, on all branches, in the order in which they were made."""
        return list(self._nodes.values())

    def path(self) -> list[Node]:
        """Return the messages along the chosen branches, first to last."""
        found, at = list[Node](), _ROOT
        while at in self._chosen:
            at = self._chosen[at]
            found.append(self._nodes[at])
        return found

    def lineage(self, id: int) -> list[Node]:
        """Return the messages that lead to this one, which is the last, whether they are chosen or not."""
        found = [self.node(id)]
        while (parent := found[-1].parent) is not None:
            found.append(self._nodes[parent])
        return found[::-1]

    def messages(self, until: int | None = None) -> list[Message]:
        """Return what a model is given, without the system prompt: roles and contents in turns.

        A reply without a word is left out, and two messages of the user in a row become one. A message that
        a guard did not let be answered is left out, too.

        Args:
            until: a message; what comes before it, on its own branch. None = the whole path.
        """
        nodes = self.path() if until is None else self.lineage(until)[:-1]
        refused = {node.parent for node in nodes if node.finish == "refused" and not node.text.strip()}
        found: list[Message] = []
        for node in nodes:
            content = node.text.strip() if node.role == "assistant" else node.text
            if not content or node.id in refused:
                continue
            if found and found[-1]["role"] == node.role:
                found[-1]["content"] += f"\n\n{content}"
            else:
                found.append({"role": node.role, "content": content})
        return found

    def prompt(self, id: int, run: int = -1) -> list[Message]:
        """Return what a model is given to write a reply, without the system prompt: see `messages`.

        Args:
            id: the reply.
            run: which of its runs. It is given the reply's words so far, and a draft that the reply revises.
        """
        node = self.node(id)
        begun = node.text[: node.runs[run].offset if node.runs else 0].lstrip()
        found = self.messages(until=id) + (node.runs[0].settings.get("revises", []) if node.runs else [])
        return [*found, {"role": "assistant", "content": begun}] if begun else found

    def siblings(self, id: int) -> tuple[int, int]:
        """Return which of its siblings a message is, from 0, and how many they are, itself included."""
        family = self._children[self.node(id).parent or _ROOT]
        return family.index(id), len(family)

    def run_tokens(self, id: int, run: int) -> list[int]:
        """Return the token ids of one of a reply's runs, with the end of the turn."""
        node = self.node(id)
        end = node.runs[run + 1].start if run + 1 < len(node.runs) else len(node.token_ids)
        return node.token_ids[node.runs[run].start : end]

    def answered(self, id: int) -> bool:
        """Return whether anything follows a message, on any branch."""
        return bool(self._children[self.node(id).id])

    def last_reply(self) -> Node | None:
        """Return the path's last reply, None if there is none."""
        return next((node for node in reversed(self.path()) if node.role == "assistant"), None)

    # Growing ------------------------------------------------------------------------------------------------

    def add_user(self, text: str) -> int:
        """Add what the user says to the end of the path; the new message's number."""
        return self._add("user", self._leaf(), text=text)

    def begin_reply(self, settings: Mapping[str, Any] | None = None) -> int:
        """Begin a reply to the user's last message; the new message's number.

        Args:
            settings: how it is written, to be recorded.

        Raises:
            SessionError: nobody has said anything, or that was answered already.
        """
        leaf = self._leaf()
        if leaf is None or self._nodes[leaf].role != "user":
            raise SessionError("there is nothing to answer")
        return self._begin(leaf, settings)

    def settle(self, id: int, settings: Mapping[str, Any]) -> None:
        """Say how a reply is written, if that was not known when it was begun."""
        self._do("settings", node=self.node(id).id, settings=dict(settings))

    def regenerate(self, id: int | None = None, settings: Mapping[str, Any] | None = None) -> int:
        """Begin another reply in place of one (by default the path's last), which is kept as its sibling.

        A user's message that has no reply yet gets one.

        Raises:
            SessionError: there is nothing to answer.
        """
        id = self._leaf() if id is None else id
        if id is None:
            raise SessionError("there is nothing to answer")
        node = self.node(id)
        return self._begin(id if node.role == "user" else node.parent, settings)

    def continue_reply(self, settings: Mapping[str, Any] | None = None) -> int:
        """Go on writing the last message, a reply; its number.

        Raises:
            SessionError: the last message is no reply, or is being written.
        """
        leaf = self._leaf()
        if leaf is None or self._nodes[leaf].role != "assistant" or not self._nodes[leaf].text.strip():
            raise SessionError("there is nothing to continue: the last message is not a reply, or is empty")
        if self._nodes[leaf].writing:
            raise SessionError("the reply is still being written")
        self._do("reply", node=leaf, continues=True, settings=dict(settings or {}))
        return leaf

    def extend(self, id: int, text: str, token_id: int | None = None) -> None:
        """Lengthen a reply that is being written.

        Args:
            id: the reply.
            text: what is new; may be empty.
            token_id: the token that wrote it; None = none did, as for a rest of text after the last token.
        """
        ids = [] if token_id is None or token_id < 0 else [token_id]
        self._do("tokens", node=self.node(id).id, ids=ids, texts=[text])

    def change_mix(self, mix: Mapping[str, Any], id: int | None = None, index: int | None = None) -> None:
        """Note that another mix is spoken with. A reply that is written with this one already is left alone.

        Args:
            mix: as `SteeringEngine.describe` has it.
            id: the reply that is being written; None = it was changed between two replies.
            index: the first token of the reply's present run that was chosen with it.
        """
        if id is not None and mix == self.node(id).runs[-1].mix:
            return
        self._do("mix", node=id, index=index, mix=dict(mix))

    def finish(self, id: int, finish: str = "stop", **stats: Any) -> None:
        """End a reply: why ("stop", "length", "cancelled", "failed"), and what is known of it."""
        self._do("end", node=self.node(id).id, finish=finish, stats=stats)

    # Branches -----------------------------------------------------------------------------------------------

    def edit(self, id: int, text: str) -> int:
        """Put another text in place of a message, as its sibling; the new message's number.

        The path ends with it. The old message and all that followed it are kept: `walk` leads back.
        """
        node = self.node(id)
        return self._add(node.role, node.parent, text=text, edit_of=id)

    def walk(self, id: int, step: int) -> int:
        """Go to another sibling of a message; the number of the one that is on the path now.

        The path goes on from there as it did when it was last there. Beyond either end is nothing.
        """
        family = self._children[self.node(id).parent or _ROOT]
        return self.go_to(family[min(max(family.index(id) + step, 0), len(family) - 1)])

    def go_to(self, id: int) -> int:
        """Lead the path through a message, from wherever it is; its number."""
        if all(self._chosen[node.parent or _ROOT] == node.id for node in self.lineage(id)):
            return id
        self._do("walk", node=id)
        return id

    def drop(self, id: int) -> None:
        """Take back a message that nothing follows.

        Raises:
            SessionError: something follows it.
        """
        if self._children[self.node(id).id]:
            raise SessionError("a message that others follow cannot be removed")
        self._do("drop", node=id)

    # The whole ----------------------------------------------------------------------------------------------

    def set_system(self, text: str | None) -> None:
        """Change the system prompt: it holds from the next reply on."""
        self._do("system", text=text)

    def rename(self, title: str) -> None:
        """Give the conversation a title.

        Raises:
            SessionError: it is empty.
        """
        if not title.strip():
            raise SessionError("a title cannot be empty")
        self._do("title", title=" ".join(title.split()))

    # Events -------------------------------------------------------------------------------------------------

    def apply(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Do what an event says, without recording it. Kinds that are not about messages do nothing.

        Raises:
            KeyError, TypeError, ValueError: the event lacks something, or does not fit the conversation.
        """
        handler = getattr(self, f"_apply_{kind}", None) if kind in _KINDS else None
        if handler is not None:
            handler(**{name: value for name, value in fields.items() if name in _KINDS[kind]})

    def interrupted(self) -> None:
        """Mark replies that have no end as broken off: the program that wrote them is gone."""
        for node in self._nodes.values():
            for run in node.runs:
                run.finish = run.finish or "interrupted"

    def _do(self, kind: str, **fields: Any) -> None:
        if kind in SPOKEN:  # which has happened, whether or not there is room to write it down
            self.apply(kind, fields)
        if self.record is not None:
            self.record(kind, **fields)
        if kind not in SPOKEN:  # what cannot be written down has not happened
            self.apply(kind, fields)

    def _add(self, role: Role, parent: int | None, *, text: str, edit_of: int | None = None) -> int:
        self._do("message", node=self._last + 1, parent=parent, role=role, text=text, edit_of=edit_of)
        return self._last

    def _begin(self, parent: int | None, settings: Mapping[str, Any] | None) -> int:
        self._do("reply", node=self._last + 1, parent=parent, settings=dict(settings or {}))
        return self._last

    def _leaf(self) -> int | None:
        return None if self._tip == _ROOT else self._tip

    def _apply_message(
        self, node: int, parent: int | None, role: Role, text: str, edit_of: int | None = None
    ) -> None:
        if role not in ("user", "assistant") or not isinstance(text, str):
            raise ValueError("a message needs a role and a text")
        self._place(Node(node, role, parent, text, edit_of=edit_of))

    def _apply_reply(
        self,
        node: int,
        settings: dict[str, Any],
        parent: int | None = None,
        continues: bool = False,
    ) -> None:
        if not continues:
            self._place(Node(node, "assistant", parent))
        reply = self._nodes[node]
        reply.runs.append(Run({}, len(reply.token_ids), len(reply.text)))
        self._apply_settings(node, settings)

    def _apply_settings(self, node: int, settings: dict[str, Any]) -> None:
        if not isinstance(settings, dict):
            raise ValueError("a reply's settings are not a mapping")
        self._nodes[node].runs[-1].settings = settings
        self.mix = settings.get("mix", self.mix)

    def _place(self, node: Node) -> None:
        family = self._children[node.parent or _ROOT]  # a KeyError if there is no such parent
        if type(node.id) is not int or node.id in self._nodes or node.id < 1:
            raise ValueError(f"message {node.id} cannot be added")
        self._nodes[node.id] = node
        self._children[node.id] = []
        self._last = max(self._last, node.id)
        family.append(node.id)
        above = node.parent or _ROOT
        if above in (self._tip, self._above(self._tip)):  # the path leads there already
            self._chosen[above] = self._tip = node.id
        else:
            self._choose(node.id)

    def _above(self, id: int) -> int:
        return _ROOT if id == _ROOT else self._nodes[id].parent or _ROOT

    def _choose(self, id: int) -> None:
        for node in self.lineage(id):
            self._chosen[node.parent or _ROOT] = node.id
        self._follow(id)

    def _follow(self, id: int) -> None:
        """Find the path's end from a message on it."""
        while id in self._chosen:
            id = self._chosen[id]
        self._tip = id

    def _apply_tokens(self, node: int, ids: Sequence[int], texts: Sequence[str]) -> None:
        reply = self._nodes[node]
        new = "".join(texts)
        if len(ids) == len(texts):
            reply.token_ids.extend(ids)
            reply.token_texts.extend(texts)
        elif ids:
            raise ValueError("there are not as many token ids as texts")
        elif reply.token_texts:
            reply.token_texts[-1] += new  # the end of a character that the last token began
        reply.text += new

    def _apply_mix(self, mix: dict[str, Any], node: int | None = None, index: int | None = None) -> None:
        if not isinstance(mix, dict):
            raise ValueError("a mix is not a mapping")
        if node is not None:
            self._nodes[node].runs[-1].changes.append(Change(int(index or 0), mix))
        elif (leaf := self._leaf()) is not None:
            self.mixes_after[leaf] = mix
        self.mix = mix

    def _apply_end(self, node: int, finish: str, stats: dict[str, Any] | None = None) -> None:
        run = self._nodes[node].runs[-1]
        run.finish, run.stats = finish, dict(stats or {})

    def _apply_walk(self, node: int) -> None:
        self._choose(self._nodes[node].id)

    def _apply_drop(self, node: int) -> None:
        parent = self._nodes[node].parent or _ROOT
        family = self._children[parent]
        place = family.index(node)
        family.remove(node)
        del self._nodes[node], self._children[node]
        if self._chosen.get(parent) == node:
            del self._chosen[parent]
            if family:
                self._chosen[parent] = family[max(place - 1, 0)]
        if self._tip == node:
            self._follow(parent)

    def _apply_system(self, text: str | None) -> None:
        self.system = text

    def _apply_title(self, title: str) -> None:
        self.title = str(title)


# The events that make a conversation, and what each of them may bring.
_KINDS: dict[str, tuple[str, ...]] = {
    "message": ("node", "parent", "role", "text", "edit_of"),
    "reply": ("node", "parent", "settings", "continues"),
    "settings": ("node", "settings"),
    "tokens": ("node", "ids", "texts"),
    "mix": ("node", "index", "mix"),
    "end": ("node", "finish", "stats"),
    "walk": ("node",),
    "drop": ("node",),
    "system": ("text",),
    "title": ("title",),
}
