"""Scores and breaches of a reply while it is being written, from the passes that write it.

`SteeringEngine.stream` compares every token with the loaded traits (`PersonaManager.load("trait:NAME")`): its
events' projections have a value for each under "trait:NAME", on the scale of scores. `LiveTraits` adds them:

    live = LiveTraits(policy, user=message)     # or live_traits, which asks the gates
    for event in engine.stream(messages):
        for breach in live.feed(event):      # a maximum that is exceeded shows at once ...
            show_badge(breach.badge)
    for breach in live.finish():             # ... a minimum at the end, when there is nothing left to say
        show_badge(breach.badge)

The mean over a reply's tokens is what `TraitScorer` would measure of the same text, up to the last token of a
reply that was cut off, and up to what steering itself adds at the trait's layer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from persona_tui.core.mix import TRAIT_PREFIX
from persona_tui.model import Message, TokenEvent
from persona_tui.model.backend import Backend
from persona_tui.traits.gate import Gates
from persona_tui.traits.policy import Breach, Policy
from persona_tui.traits.vector import TraitVector
from persona_tui.vectors.persona import PersonaVector

SETTLED = 8  # tokens before a mean is worth a badge


def live_traits(
    policy: Policy,
    vectors: Sequence[PersonaVector],
    model: Backend,
    prompt: Sequence[Message],
    turn: int,
    rows: int,
) -> list[LiveTraits]:
    """Return what judges each of some replies to one prompt; the prompt is read once, by the traits' gates.

    Args:
        policy: what is allowed.
        vectors: its traits, made on the model.
        model: reads the prompt.
        prompt: what is answered; it may end with the beginning of the reply.
        turn: which reply of the conversation it is.
        rows: how many replies.

    Raises:
        VectorFileError: one of the vectors is no trait.
        GenerationError: memory ran out.
    """
    traits = [TraitVector.of(vector) for vector in vectors]
    asked = list(prompt)
    while asked and asked[-1]["role"] == "assistant":
        asked.pop()
    user = asked[-1]["content"] if asked and asked[-1]["role"] == "user" else ""
    outside, policy = Gates(model, traits).outside([asked])[0], policy.on_model(traits)
    return [LiveTraits(policy, user, turn, outside) for _ in range(rows)]


class LiveTraits:
    """The traits of one reply that is being written.

    Attributes:
        latest: by trait, the value of the latest token: what a trace draws.
        count: tokens in the means.
        outside: traits that are not judged.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        user: str = "",
        turn: int | None = None,
        outside: Collection[str] = (),
    ) -> None:
        """
        Args:
            policy: what is allowed; None = nothing is judged.
            user: the message that is answered.
            turn: which reply of the conversation it is, for the breaches.
            outside: traits that the message is not about (`Gates.outside`): they are not judged.
        """
        self.policy = policy
        self.latest: dict[str, float] = {}
        self.count = 0
        self._user = user
        self._turn = turn
        self.outside = frozenset(outside)
        self._sums: dict[str, float] = {}
        self._shown: set[tuple[str, str]] = set()

    @property
    def scores(self) -> dict[str, float]:
        """By trait, the mean over the reply's tokens so far; empty before the second token."""
        return {name: total / self.count for name, total in self._sums.items()} if self.count else {}

    def feed(self, event: TokenEvent) -> list[Breach]:
        """Take in a token; return the breaches that are new with it.

        Only maxima are judged on the way: a reply that has not been warm yet may still become so. Each breach
        comes once.
        """
        values = {
            name.removeprefix(TRAIT_PREFIX): value
            for name, value in event.projections.items()
            if name.startswith(TRAIT_PREFIX)
        }
        # A projection is read where its token was chosen, at the token before: the first one is the prompt's.
        if event.token_id < 0 or event.index == 0 or not values:
            return []
        self.latest = values
        self.count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if self.count < SETTLED:
            return []
        return self._new([breach for breach in self._breaches() if breach.side == "max"])

    def finish(self) -> list[Breach]:
        """Judge the whole reply; return the breaches that were not there before."""
        return self._new(self._breaches())

    def breaches(self) -> list[Breach]:
        """Return all breaches of the reply as it stands."""
        return self._breaches()

    def _breaches(self) -> list[Breach]:
        if self.policy is None:
            return []
        return self.policy.breaches(self.scores, self._user, self._turn, self.outside)

    def _new(self, breaches: list[Breach]) -> list[Breach]:
        new = [each for each in breaches if (each.trait, each.side) not in self._shown]
        self._shown |= {(each.trait, each.side) for each in new}
        return new
