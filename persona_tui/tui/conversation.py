"""What has been said, as the model is given it."""

from dataclasses import dataclass, field


@dataclass
class Conversation:
    """Messages, oldest first, in turns of user and assistant; the system prompt is kept apart."""

    messages: list[dict[str, str]] = field(default_factory=list)
    system: str | None = None

    def say(self, text: str) -> None:
        """Add what the user said. Two messages in a row, after a reply that failed, become one."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages[-1]["content"] += f"\n\n{text}"
        else:
            self.messages.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        """Add what the model said; nothing if it said nothing."""
        if text.strip():
            self.messages.append({"role": "assistant", "content": text.strip()})

    def take_back_answer(self) -> bool:
        """Remove the last reply, to have it written anew; whether there is anything to answer."""
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        return bool(self.messages)

    def clear(self) -> None:
        """Begin another conversation with the same system prompt."""
        self.messages.clear()
