"""A conversation as the chat shows it: messages, with rulers where the mix changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from persona_tui.chat.voice import NOBODY, difference, label
from persona_tui.core.mix import Mix
from persona_tui.monitors.verdict import Verdict
from persona_tui.tui.blocks import Badge, Heading, MessageBlock, Ruler

if TYPE_CHECKING:
    from persona_tui.chat import Change, Conversation, Node, Run
    from persona_tui.model import TokenEvent
    from persona_tui.tui.widgets.chat_log import ChatLog

ENDINGS = {
    "cancelled": "stopped",
    "length": "cut off",
    "failed": "failed",
    "interrupted": "broken off",
    "refused": "refused",
}


_NEAR = 60  # characters between two changes that share a ruler


@dataclass(frozen=True)
class Scene:
    """What a message looks like depends on this, besides on itself.

    Attributes:
        place: which of its siblings it is, from 0.
        family: how many they are.
        after: the message that follows it, if any: with a reply comes the verdict about what it answers.
    """

    place: int = 0
    family: int = 1
    after: Node | None = None


def mix_of(run: Run) -> Mix | None:
    """Return what a run began to be written with, if that was recorded."""
    mix = run.settings.get("mix")
    return Mix.from_record(mix) if mix else None


def last_mix(node: Node) -> Mix | None:
    """Return what a message was last written with; None if it was typed."""
    recorded = node.runs[-1].mix if node.runs else None
    return Mix.from_record(recorded) if recorded else None


def sync(chat: ChatLog, conversation: Conversation) -> None:
    """Make a chat show what a conversation's path is now; what it shows of that already stays.

    Messages without a number, which are in no conversation, are left alone.
    """
    path = conversation.path()
    shown = _numbered(chat)
    same = sum(
        1
        for _ in takewhile(
            lambda pair: pair[0].key == pair[1].id and pair[0].source == pair[1].text,
            zip(shown, path, strict=False),
        )
    )
    if same < len(shown):
        chat.cut(chat.blocks.index(shown[same]))
    for node in path[same:]:
        chat.add(block_of(node, Scene(*conversation.siblings(node.id))))
    for block, node, after in zip(_numbered(chat), path, [*path[1:], None], strict=False):
        block.set_heading(heading_of(node, Scene(*conversation.siblings(node.id), after=after)))
        block.set_end(refusal_of(node))
    _rule(chat, dividers(path, conversation))
    chat.rearrange()


def _numbered(chat: ChatLog) -> list[MessageBlock]:
    return [block for block in chat.messages if block.key is not None]


def dividers(path: Sequence[Node], conversation: Conversation) -> dict[int, str]:
    """Return where the voice changed between two messages of a path, and how: by the message before it."""
    found: dict[int, str] = {}
    now: Mix | None = None
    for node, following in zip(path, [*path[1:], None], strict=False):
        now = last_mix(node) or now
        begun = mix_of(following.runs[0]) if following is not None and following.runs else None
        chosen = conversation.mixes_after.get(node.id)
        then = begun or (Mix.from_record(chosen) if chosen else None)
        if then is not None:
            if now is not None and (text := difference(now, then)):
                found[node.id] = text
            now = then
    return found


def _rule(chat: ChatLog, wanted: Mapping[int, str]) -> None:
    """Draw the dividers between messages; one that is there stays where it is, and says what is so now."""
    there = {
        block.after: block for block in chat.blocks if isinstance(block, Ruler) and block.after is not None
    }
    for key, ruler in there.items():
        if key not in wanted:
            chat.blocks.remove(ruler)
        else:
            ruler.say(wanted[key])
    messages = _numbered(chat)
    for place, message in enumerate(messages):
        text = wanted.get(message.key or 0)
        if text is not None and message.key not in there:
            following = messages[place + 1] if place + 1 < len(messages) else None
            at = chat.blocks.index(following) if following is not None else len(chat.blocks)
            chat.blocks.insert(at, Ruler(text, after=message.key))


def block_of(node: Node, scene: Scene) -> MessageBlock:
    """Return a message, with a ruler wherever its mix changed."""
    message = MessageBlock(node.role, heading_of(node, scene), key=node.id)
    rules, written = Rules(message, mix_of(node.runs[0]) if node.runs else None), 0
    for place, mix in node.rulers():
        message.write(node.text[written:place])
        rules.change(Mix.from_record(mix))
        written = place
    message.write(node.text[written:])
    return message


class Rules:
    """Draws rulers into a reply where its mix changed. Changes that follow each other closely share one."""

    def __init__(self, block: MessageBlock, begun: Mix | None) -> None:
        """
        Args:
            block: the reply.
            begun: what it began to be written with.
        """
        self._block = block
        self._now = self._before = begun
        self._drawn_at: int | None = None

    def change(self, mix: Mix) -> None:
        """Note that what follows is written with another mix."""
        here = len(self._block.source)
        near = self._drawn_at is not None and here - self._drawn_at < _NEAR
        if not near:
            self._before = self._now
        text = difference(self._before, mix) if self._before is not None else ""
        self._now = mix
        if text or near:
            self._block.rule(text, again=near)
            self._drawn_at = self._drawn_at if near and text else here if text else None


class Writer:
    """Writes a message's tokens as they come, with a ruler before the first token of every new mix."""

    def __init__(self, block: MessageBlock, begun: Mix | None) -> None:
        """
        Args:
            block: the message.
            begun: what it began to be written with.
        """
        self.block = block
        self._rules = Rules(block, begun)
        self._ruled = 0  # how many changes of the mix have been drawn

    def take(self, events: Sequence[TokenEvent], changes: Sequence[Change]) -> None:
        """Write tokens.

        Args:
            events: those that came since the last time.
            changes: all other mixes that have taken effect so far.
        """
        text: list[str] = []
        for event in events:
            while self._ruled < len(changes) and changes[self._ruled].index <= event.index:
                self.block.write("".join(text))
                text.clear()
                self._rules.change(Mix.from_record(changes[self._ruled].mix))
                self._ruled += 1
            text.append(event.text)
        self.block.write("".join(text))


def heading_of(node: Node, scene: Scene, note: str | None = None) -> Heading:
    """Return the first line of a message.

    Args:
        node: the message.
        scene: where it stands.
        note: what to say of a reply; None = how it went.
    """
    version = f" ‹{scene.place + 1}/{scene.family}›" if scene.family > 1 else ""
    badges = badges_of(node, scene.after)
    if node.role == "user":
        return Heading("you", "$text-secondary", version, badges=badges)
    facts = facts_of(node) if note is None else [note]
    return Heading(speaker_of(node), "$text-primary", version, facts, badges)


def badges_of(node: Node, after: Node | None = None) -> list[Badge]:
    """Return what a guard and a policy said of a message.

    Args:
        node: the message.
        after: what follows it, if anything.
    """
    if node.role == "user":
        verdict = _verdict(after, "message") if after is not None else None
        return [verdict_badge(verdict)] if verdict is not None else []
    verdict = _verdict(node, "reply")
    breaches = [str(each.get("badge", "")) for run in node.runs for each in run.stats.get("breaches", ())]
    judged = [verdict_badge(verdict)] if verdict is not None else []
    return [*judged, *breach_badges(breaches)]


def verdict_badge(verdict: Verdict) -> Badge:
    """Return how a verdict is shown."""
    if verdict.safe:
        return Badge(f"✓ {verdict.badge}", "$text-success")
    return Badge(f"✗ {verdict.badge}", "bold $text-error")


def breach_badges(texts: Iterable[str]) -> list[Badge]:
    """Return how breaches of a policy are shown, each once."""
    return [Badge(f"! {text}", "$text-warning") for text in dict.fromkeys(texts) if text]


def refusal_of(node: Node) -> str:
    """Say why a message was not answered, or a reply stopped; "" if a guard did neither."""
    if node.finish != "refused":
        return ""
    verdict = _verdict(node, "reply") or _verdict(node, "message")
    return verdict.refusal if verdict is not None else "Stopped by the guard."


def _verdict(node: Node, about: str) -> Verdict | None:
    """Return the last verdict that a reply was written down with; one that cannot be read is none."""
    records = [run.stats.get("guard", {}).get(about) for run in node.runs]
    with contextlib.suppress(KeyError, TypeError):
        return next((Verdict.from_dict(record) for record in reversed(records) if record), None)
    return None


def speaker_of(node: Node) -> str:
    """Return who wrote a reply, and how loud: `sage 0.30`."""
    if not node.runs:
        return "assistant, as written by you"
    return voice_of(mix_of(node.runs[0]))


def voice_of(mix: Mix | None) -> str:
    """Return who writes with a mix, and how loud: `sage 0.30`; `assistant` for nobody in particular."""
    said = label(mix) if mix is not None else NOBODY
    return "assistant" if said == NOBODY else said


def facts_of(node: Node) -> list[str]:
    """Say how a reply went: `stopped`, `57 tokens`, `31 tok/s`, `prompt 120`."""
    if not node.runs or node.writing:
        return []
    run = node.runs[-1]
    tokens = sum(each.stats.get("tokens", 0) for each in node.runs)
    speed, prompt = run.stats.get("tokens_per_second"), run.stats.get("prompt_tokens")
    facts = [
        ENDINGS.get(run.finish or "", ""),
        f"{tokens} tokens" if tokens else "",
        f"{speed:.0f} tok/s" if speed else "",
        f"prompt {prompt}" if prompt else "",
    ]
    return [fact for fact in facts if fact]
