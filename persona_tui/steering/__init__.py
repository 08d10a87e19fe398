"""Speaking with a mix of personas: what is added to the residual stream, how loud, and what holds it back."""

from persona_tui.core.mix import Mix, parse_blend
from persona_tui.steering.engine import Reply, SteeringEngine

__all__ = ["Mix", "Reply", "SteeringEngine", "parse_blend"]
