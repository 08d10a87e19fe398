"""What can be done with a message that is marked in the chat: copy, edit and branch, walk, write again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from persona_tui.chat.reread import text_before
from persona_tui.core.errors import PersonaTuiError
from persona_tui.tui.blocks import MessageBlock
from persona_tui.tui.clipboard import clipboard_command, copy

if TYPE_CHECKING:
    from persona_tui.chat import Node
    from persona_tui.tui.replies import ReplyView
    from persona_tui.tui.stage import AppStage


class MessageMenu:
    """Does what the user asks of a message."""

    def __init__(self, app: AppStage, replies: ReplyView) -> None:
        self._app, self._replies = app, replies
        self._code_copied: tuple[int, int] | None = None  # message and code block
        self._tasks: set[asyncio.Task[None]] = set()
        self._doings = {
            "copy": self.copy_message,
            "code": self.copy_code,
            "edit": self.edit,
            "before": lambda block: self.walk(block, -1),
            "after": lambda block: self.walk(block, 1),
            "again": self.again,
            "continue": self.go_on,
        }

    def asked(self, what: str, block: MessageBlock) -> None:
        """Do what is wanted.

        Raises:
            PersonaTuiError: it cannot be done.
        """
        self._doings[what](block)

    # --- copying

    def copy_message(self, block: MessageBlock) -> None:
        """Copy a message as it was written."""
        self.copy(block.source.strip(), "the message")

    def copy_code(self, block: MessageBlock) -> None:
        """Copy a code block of a message, the last one first; once more, and it is the one before."""
        codes = block.code_blocks()
        if not codes:
            raise PersonaTuiError("there is no code block in this message")
        place = len(codes) - 1
        if self._code_copied is not None and self._code_copied[0] == block.serial:
            place = (self._code_copied[1] - 1) % len(codes)
        self._code_copied = (block.serial, place)
        which = f" {place + 1} of {len(codes)}" if len(codes) > 1 else ""
        self.copy(codes[place], f"code block{which}")

    def copy_last(self, code: bool = False) -> None:
        """Copy the last reply, or its last code block."""
        replies = [block for block in self._app.main.chat.messages if block.role == "assistant"]
        if not replies:
            raise PersonaTuiError("there is no reply to copy yet")
        (self.copy_code if code else self.copy_message)(replies[-1])

    def copy(self, text: str, what: str) -> None:
        """Copy a text, and say so."""
        self._app.copy_to_clipboard(text)
        size = f"{len(text.splitlines())} lines" if "\n" in text else f"{len(text)} characters"
        self._app.notify(f"Copied {what} ({size}).")

    def to_system(self, text: str) -> None:
        """Hand a text to the system's clipboard, too, where there is a program for that."""
        command = clipboard_command()
        if command is None:
            return

        async def hand_over() -> None:
            problem = await asyncio.to_thread(copy, text, command)
            if problem is not None:
                self._app.main.jobs.write(f"clipboard: {problem}")

        task = asyncio.get_running_loop().create_task(hand_over())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- branches

    def edit(self, block: MessageBlock) -> None:
        """Put a message into the prompt, to be sent in another form as a branch of its own."""
        self._replies.check_idle()
        if block.key is not None:
            self._app.main.prompt.begin_editing(block.key, block.source.strip())
            self._app.main.set_focus(self._app.main.prompt)

    def edited(self, key: int, text: str) -> None:
        """Take the new form of a message: one of the user's is answered, a reply stands as it is."""
        self._replies.check_idle()
        reply = self._app.chat.edit(key, text)
        if reply is not None:
            self._replies.begin(reply)
        else:
            self._replies.show()

    def fork(self, node: Node, place: int, text: str) -> None:
        """Have a reply go on differently from one of its tokens on, beside what it said.

        Args:
            node: the reply.
            place: of the token.
            text: what stands there instead; "" = the reply ends there.
        """
        self._replies.check_idle()
        begun = text_before(node, place) + text
        if not begun.strip():
            raise PersonaTuiError("a reply needs a word to go on from")
        self._app.chat.edit(node.id, begun)
        self._replies.show()
        if text:
            self._replies.go_on()

    def walk(self, block: MessageBlock, step: int) -> None:
        """Go to another version of a message, and to what followed that."""
        self._replies.check_idle()
        if block.key is None:
            return
        if self._app.chat.conversation.siblings(block.key)[1] == 1:
            raise PersonaTuiError("this message has only one version: e edits it, f5 writes a reply again")
        now, log = self._app.chat.walk(block.key, step), self._app.main.chat
        self._replies.show()
        log.mark(next(message for message in log.messages if message.key == now))

    def again(self, block: MessageBlock) -> None:
        """Write a reply again, or another answer to the user's message."""
        self._replies.regenerate(block.key)
        self._app.main.set_focus(self._app.main.prompt)

    def go_on(self, block: MessageBlock) -> None:
        """Continue the last reply."""
        if block is not self._app.main.chat.messages[-1]:
            raise PersonaTuiError("only the last message can be continued")
        self._replies.go_on()
        self._app.main.set_focus(self._app.main.prompt)
