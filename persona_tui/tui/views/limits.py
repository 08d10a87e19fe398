"""What is allowed, and which replies do not keep to it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from textual.app import ComposeResult
from textual.content import Content

from persona_tui.traits.definition import Limit
from persona_tui.traits.policy import Breach, Limits, Policy
from persona_tui.tui.views.plot import Sheet, message
from persona_tui.tui.views.view import View


class LimitsView(View):
    """The breaches first, then the limits."""

    TITLE = "limits"

    def compose(self) -> ComposeResult:
        """Return the list."""
        yield Sheet(id="limits-list")

    def empty(self, why: str) -> None:
        """There is nothing to show."""
        self.query_one(Sheet).show(message(why))

    def show(self, policy: Policy, breaches: Sequence[Breach], replies: int) -> None:
        """Show a policy and what breaks it.

        Args:
            policy: the limits.
            breaches: of the conversation.
            replies: how many were measured.
        """
        self.query_one(Sheet).show(lambda width, height: _rows(policy, breaches, replies, width))


def _rows(policy: Policy, breaches: Sequence[Breach], replies: int, width: int) -> list[Content]:
    count = len(breaches)
    verdict = f"{count} breach{'es' if count > 1 else ''}" if count else "no breach"
    if not replies:
        verdict = "no reply yet"
    style = "bold $text-error" if breaches else "bold $text-success"
    rows = [Content.assemble((verdict, style), (f" of {policy.name}, by {policy.applies_to}", "dim"))]
    for breach in breaches:
        rows += [Content.styled(line, "$text-error") for line in _wrapped(f"! {breach}", width)]
    rows.append(Content(""))
    for name, limits in policy.traits.items():
        about = f" {limits.reason}" if limits.reason else ""
        when = f" · where they say {', '.join(limits.when)}" if limits.when else ""
        rows += [Content(line) for line in _wrapped(f"{name} {_range(limits)}{about}{when}", width)]
    return rows


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 10), subsequent_indent="  ")


def _range(limits: Limits) -> str:
    ends = [f"from {_limit(limits.min)}"] if limits.min is not None else []
    return " ".join([*ends, f"up to {_limit(limits.max)}"] if limits.max is not None else ends)


def _limit(limit: Limit) -> str:
    return f"{limit:.3g}" if isinstance(limit, float) else limit
