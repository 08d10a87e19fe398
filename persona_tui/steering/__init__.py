"""Speaking with a mix of personas: what is added to the residual stream, how loud, and what holds it back."""

from typing import TYPE_CHECKING

from persona_tui.core.lazy import lazily

if TYPE_CHECKING:
    from persona_tui.core.mix import Mix, parse_blend
    from persona_tui.steering.engine import Reply, SteeringEngine

__all__ = ["Mix", "Reply", "SteeringEngine", "parse_blend"]

__getattr__ = lazily(
    __name__,
    dict.fromkeys(("Mix", "parse_blend"), "persona_tui.core.mix")
    | dict.fromkeys(("Reply", "SteeringEngine"), "persona_tui.steering.engine"),
)
