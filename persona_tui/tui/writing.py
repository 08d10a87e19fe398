"""Writes a reply's tokens into the chat as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from persona_tui.tui.transcript import Rules
from persona_tui.tui.voice import Faders

if TYPE_CHECKING:  # torch is not imported before the first paint
    from persona_tui.chat import Change
    from persona_tui.model.wrapper import TokenEvent
    from persona_tui.tui.blocks import MessageBlock


class Writing:
    """A message that is being written, with a ruler before the first token of every new mix."""

    def __init__(self, block: MessageBlock, begun: Faders | None) -> None:
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
                self._rules.change(Faders.from_record(changes[self._ruled].mix))
                self._ruled += 1
            text.append(event.text)
        self.block.write("".join(text))
