"""Who speaks: a model's name with voices, `starter+sage:0.3`, and what a request says about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from persona_tui.core.errors import PersonaTuiError, nearest
from persona_tui.core.mistakes import mistake_of
from persona_tui.core.mix import TRAIT_PREFIX, Mix, parse_blend
from persona_tui.monitors.guard import GuardMode
from persona_tui.server.limits import Refused

if TYPE_CHECKING:
    from persona_tui.traits.policy import Policy

LATEST = ":latest"  # Ollama's clients put it behind a name without a tag


class VoiceOptions(BaseModel):
    """The field `persona_tui` of a request.

    Attributes:
        persona: who speaks; or
        blend: several and their proportions, `{"sage": 0.5, "trickster": 0.5}` or "sage:0.5,trickster:0.5".
        strength: how loud.
        capping: whether the floor is enforced.
        capping_axis: on which axis.
        percentile: where the floor lies.
        plausibility: the guide.
        trace: personas, traits ("trait:NAME") and axes whose projections are wanted token by token; an empty
            list = no projections at all, not even means.
        guard: whether messages and replies are judged, and what is done about it; with `critique`, the model
            reads its draft, and answers again if that helps to do harm.
        policy: rules such as "trait>0.3", or limits by trait, `{"trait": {"max": 0.3}}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    persona: str | None = None
    blend: dict[str, float] | str | None = None
    strength: float | None = Field(default=None, allow_inf_nan=False)
    capping: bool | None = None
    capping_axis: Literal["assistant", "safety"] | None = None
    percentile: float | None = None
    plausibility: float | None = None
    trace: tuple[str, ...] | None = None
    guard: GuardMode | None = None
    policy: list[str] | dict[str, dict[str, Any]] | None = None


@dataclass(frozen=True)
class Voice:
    """How a request is answered.

    Attributes:
        mix: what is spoken with.
        trace: whose projections are wanted token by token; None = nobody's, but means.
        guard: its mode.
        policy: which scores of traits the reply may have.
    """

    mix: Mix
    trace: tuple[str, ...] | None = None
    guard: GuardMode = "off"
    policy: Policy | None = None

    @property
    def traced(self) -> list[str] | None:
        """The personas and traits that have to be compared with every token; None = nothing has to be."""
        judged = [f"{TRAIT_PREFIX}{name}" for name in self.policy.traits] if self.policy is not None else []
        if self.trace == () and not judged:
            return None
        return [*(name for name in self.trace or () if name not in ("assistant", "safety")), *judged]


@dataclass(frozen=True)
class Voices:
    """Reads names and options.

    Attributes:
        base: the model's name, which answers with the plain model.
        personas: all that there are.
        traits: all that there are, with their prefix.
        default: the mix of the settings, with nobody in it.
        guard: the guard's mode of the settings.
    """

    base: str
    personas: Sequence[str]
    traits: Sequence[str]
    default: Mix
    guard: GuardMode

    @property
    def names(self) -> list[str]:
        """What clients may choose from."""
        return [self.base, *(f"{self.base}+{name}" for name in self.personas)]

    def check_model(self, model: str) -> None:
        """Raise Refused unless a model's name means somebody here."""
        self._spoken(model)

    def read(self, model: str, options: VoiceOptions | None = None) -> Voice:
        """Return the voice that a model's name and a request's options ask for; the options win.

        Raises:
            Refused: the model or somebody named there does not exist (404), or the options contradict
                each other or are out of range (400).
        """
        options = options or VoiceOptions()
        weights, strength = self._spoken(model)
        if options.persona is not None and options.blend is not None:
            raise Refused('use either "persona" or "blend", not both', param="persona_tui")
        if options.persona is not None:
            weights = {options.persona: 1.0} if options.persona else {}
        elif options.blend is not None:
            blend = options.blend
            weights = parse_blend(blend) if isinstance(blend, str) else dict(blend)
        self.check_known([*weights, *(options.trace or ())], "persona_tui")
        changes = options.model_dump(
            include={"strength", "capping", "capping_axis", "percentile", "plausibility"}, exclude_none=True
        )
        if strength is not None:
            changes = {"strength": strength, **changes}
        return Voice(
            replace(self.default, weights=weights, **changes),
            options.trace,
            options.guard or self.guard,
            self._policy(options.policy),
        )

    def _spoken(self, model: str) -> tuple[dict[str, float], float | None]:
        """Return the weights that a model's name stands for, and the strength if it says one."""
        name = model.removesuffix(LATEST)
        if name == self.base:
            return {}, None
        base, plus, spoken = name[: len(self.base)], name[len(self.base) :][:1], name[len(self.base) + 1 :]
        if base != self.base or plus != "+" or not spoken:
            hint = nearest(name, self.names) or f" The model here is {self.base}."
            raise _no_model(f'The model "{model}" does not exist.{hint}')
        try:
            weights = parse_blend(spoken.replace("+", ","))
        except PersonaTuiError as error:
            raise _no_model(
                f'The model "{model}" cannot be read: {str(error).rstrip(".")}. '
                f"A model looks like {self.base}+NAME:0.3."
            ) from error
        self.check_known(weights, "model")
        # One voice's number is how loud it is; those of several are their proportions.
        if len(weights) == 1 and ":" in spoken.removeprefix(TRAIT_PREFIX):
            ((only, strength),) = weights.items()
            return {only: 1.0}, strength
        return weights, None

    def check_known(self, names: Iterable[str], param: str = "persona_tui") -> None:
        """Raise Refused unless all of these are personas, traits or axes here."""
        known = [*self.personas, *self.traits, "assistant", "safety"]
        for name in names:
            if name not in known:
                code = "model_not_found" if param == "model" else "persona_not_found"
                raise Refused(
                    f'There is no persona or trait "{name}".{nearest(name, known)}',
                    status=404,
                    code=code,
                    param=param,
                )

    def _policy(self, given: list[str] | Mapping[str, Any] | None) -> Policy | None:
        if not given:
            return None
        from pydantic import ValidationError

        from persona_tui.traits.policy import Policy

        try:
            policy = (
                Policy.from_rules(given)
                if isinstance(given, list)
                else Policy.model_validate({"traits": dict(given)})
            )
        except ValidationError as error:
            document = {"traits": given}
            raise Refused(f"policy: {mistake_of(error, document)}.", param="persona_tui") from error
        return policy.among([name.removeprefix(TRAIT_PREFIX) for name in self.traits])


def _no_model(message: str) -> Refused:
    return Refused(message, status=404, code="model_not_found", param="model")
