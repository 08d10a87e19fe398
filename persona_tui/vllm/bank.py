"""What a request asks for, and the vectors that it stands for: no vllm in here."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from persona_tui.core.config import Settings, resolve_layers
from persona_tui.core.errors import ConfigError, PersonaTuiError, VectorFileError
from persona_tui.core.mix import Mix, parse_blend
from persona_tui.core.workspace import Workspace
from persona_tui.model import Cap
from persona_tui.vectors.manager import PersonaManager
from persona_tui.vectors.maths import TraceScale
from persona_tui.vllm.wire import KEY, MODEL, WORKSPACE, Slot

_KNOWN = {"persona", "blend", "strength", "capping", "percentile", "safe", "capping_axis", "trace"}
_HELD_ELSEWHERE = ("guard", "policy")
_MOST_TRACED = 16


class Bank:
    """The personas of one workspace, for one model.

    Args:
        root: the workspace.
        model: the name whose folder of vectors is used.
        n_layers: of the model that runs.
        hidden_size: of the model that runs; vectors of another width are refused.
    """

    def __init__(self, root: Path, model: str, n_layers: int, hidden_size: int) -> None:
        self.workspace = Workspace.find(root)
        self.settings = self.workspace.settings
        self.personas = PersonaManager(self.workspace.model_dir(model), model_name=model)
        self._n_layers = n_layers
        self._hidden_size = hidden_size
        self._capping_layers = tuple(resolve_layers(self.settings, n_layers).capping)

    @classmethod
    def from_environment(cls, model: str, n_layers: int, hidden_size: int) -> Bank | None:
        """Return the bank that the operator named in `PERSONA_TUI_WORKSPACE`; None if there is none.

        Raises:
            WorkspaceError: the workspace cannot be used.
        """
        root = os.environ.get(WORKSPACE)
        if not root:
            return None
        found = cls(Path(root), os.environ.get(MODEL, model), n_layers, hidden_size)
        check_unguarded(found.settings)
        return found

    def mix_of(self, request: object) -> Mix:
        """Return the mix that a request asks for.

        Args:
            request: a mapping with `persona` or `blend` ("A:0.5,B:0.5", or a mapping of weights), `strength`,
                `capping`, `percentile`, `capping_axis`, `safe` and `trace` (names), or the same as JSON text.

        Raises:
            PersonaTuiError: it cannot be read, names nobody that is known, or asks for what cannot be done.
        """
        asked = _checked(_parsed(request))
        weights = _weights(asked)
        for name in [*weights, *_traced(asked)]:
            self.personas.get(name)
        steering = self.settings.steering
        known = {each.name for each in fields(Mix)}
        own = {key: value for key, value in asked.items() if key in known}
        try:
            return Mix(
                **{
                    "strength": steering.default_strength,
                    "capping": steering.capping,
                    **own,
                    "weights": weights,
                }
            )
        except TypeError as error:
            raise PersonaTuiError(f'"{KEY}" has a value of the wrong type: {error}') from None

    def slot(self, mix: Mix) -> Slot:
        """Return the vectors and floors of a mix.

        Raises:
            PersonaNotFoundError: it names a persona that does not exist.
            VectorFileError: a file cannot be used, or does not fit the model.
        """
        composite = self.personas.get_composite(mix.weights, mix.safe, mix.layers) if mix.strength else {}
        added = {layer: mix.strength * vector for layer, vector in composite.items()}
        for layer, vector in added.items():
            if layer >= self._n_layers or vector.shape[0] != self._hidden_size:
                names, width = ", ".join(mix.weights), vector.shape[0]
                raise VectorFileError(
                    f"the vectors of {names} are {width} wide at layer {layer}; this model is "
                    f"{self._hidden_size} wide and has layers 0 to {self._n_layers - 1}"
                )
        return Slot(added, self._caps(mix))

    def _caps(self, mix: Mix) -> dict[int, Cap]:
        axes = self.personas.axes
        if axes is None or not mix.capping:
            return {}
        configured = self.settings.steering.capping_axis
        name = mix.capping_axis or (configured if configured != "auto" else axes.default_capping_axis)
        percentile = (
            self.settings.steering.safety_floor_percentile if mix.percentile is None else mix.percentile
        )
        floors = axes.floors(name, self._capping_layers, percentile)
        return {layer: Cap(*floor) for layer, floor in floors.items()}

    def scales(self, mix: Mix, request: object) -> dict[str, TraceScale]:
        """Return what the tokens of a mix are compared with: who speaks, whom a request names, and the axes.

        Raises:
            VectorFileError: a file cannot be used.
        """
        axes = self.personas.axes
        names = dict.fromkeys([*mix.speaking, *_traced(request)])
        found = {name: self.personas.get(name).scale for name in names}
        if axes is not None:
            named = [name for name in axes.names if name in axes.projections]
            found |= {name: axes.scale(name, self._capping_layers) for name in named}
        return {name: scale for name, scale in found.items() if scale.vectors}

    def key(self, mix: Mix) -> str:
        """Return what tells two mixes apart that do different things: also the salt of the prefix cache.

        A file that has changed on the disk gives another key only after this process has read it again.
        """
        files = {name: self.personas.digest(name) for name in mix.speaking}
        floor = self.personas.digest() if mix.capping and self.personas.axes is not None else None
        record = {each.name: getattr(mix, each.name) for each in fields(Mix)}
        text = json.dumps([record, files, floor], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def check_unguarded(settings: Settings) -> None:
    """Raise a ConfigError if replies are to be guarded: vLLM's endpoints would answer without."""
    if settings.monitoring.guard != "off":
        raise ConfigError(
            f"monitoring.guard is {settings.monitoring.guard}, and vLLM's own endpoints cannot hold it: set "
            "it to off, or serve without --engine vllm."
        )


def _parsed(request: object) -> dict[str, Any]:
    if isinstance(request, str):
        try:
            request = json.loads(request)
        except (ValueError, RecursionError):
            raise PersonaTuiError(f'"{KEY}" is not valid JSON') from None
    if not isinstance(request, Mapping):
        raise PersonaTuiError(f'"{KEY}" must be an object such as {{"persona": "sage", "strength": 0.3}}')
    return {str(key): value for key, value in request.items()}


def _traced(request: object) -> list[str]:
    """Whom else a request wants its tokens compared with."""
    names = _parsed(request).get("trace", [])
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise PersonaTuiError(f'"trace" of "{KEY}" is a list of names')
    if len(names) > _MOST_TRACED:
        raise PersonaTuiError(f'"trace" of "{KEY}" has more than {_MOST_TRACED} names')
    return names


def _checked(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is asked for that can be done here; raises what is wrong with the rest."""
    if "plausibility" in asked:
        raise PersonaTuiError(
            "the guide (plausibility) needs a second row per request and is not available in vLLM"
        )
    if held := [name for name in _HELD_ELSEWHERE if asked.get(name) not in (None, "off", [], {})]:
        raise PersonaTuiError(
            f'"{held[0]}" is for `persona-tui serve`, and for chats with --engine URL: vLLM\'s own '
            "endpoints cannot hold it"
        )
    asked = {key: value for key, value in asked.items() if key not in _HELD_ELSEWHERE}
    if unknown := sorted(set(asked) - _KNOWN):
        raise PersonaTuiError(
            f'"{KEY}" has an unknown field "{unknown[0]}"; known: {", ".join(sorted(_KNOWN))}'
        )
    return asked


def _weights(asked: dict[str, Any]) -> dict[str, float]:
    persona, blend = asked.get("persona"), asked.get("blend")
    if persona is not None and blend is not None:
        raise PersonaTuiError(f'"{KEY}" has both "persona" and "blend"')
    if isinstance(persona, str):
        return {persona: 1.0}
    if isinstance(blend, str):
        return parse_blend(blend)
    if isinstance(blend, Mapping) and all(isinstance(each, int | float) for each in blend.values()):
        return {str(name): float(weight) for name, weight in blend.items()}
    if persona is None and blend is None:
        return {}
    raise PersonaTuiError(f'"{KEY}" names nobody: "persona" is a name, "blend" a mapping of names to weights')
