"""The engine asks nothing of a model but what `Backend` promises."""

from __future__ import annotations

from typing import Any

import pytest

from persona_tui.extraction import ActivationExtractor
from persona_tui.model import Backend, ModelWrapper, conversation
from persona_tui.steering import Mix, SteeringEngine

ASKED = conversation("Who are you?")


class OnlyPromised:
    """A model that has no attribute beside those of the protocol."""

    def __init__(self, model: ModelWrapper) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        if name not in dir(Backend):
            raise AttributeError(f"{name} is no part of the protocol")
        return getattr(self._model, name)


def test_steering_and_extraction_stand_on_the_protocol(engine: SteeringEngine) -> None:
    backend: Any = OnlyPromised(engine.model)  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="no part"):
        backend.tokenizer  # noqa: B018
    other = SteeringEngine(backend, engine.personas, engine.settings)
    mix = Mix({"sage": 1}, 0.6)
    said = [[event.token_id for event in each.stream_rows(ASKED, [mix, None])] for each in (engine, other)]
    assert said[0] == said[1]
    assert other.reply(ASKED, mix=mix).text == engine.reply(ASKED, mix=mix).text
    reread = [each.reread_reply(ASKED, "Well met.", {0: mix}) for each in (engine, other)]
    assert reread[0] == reread[1]
    vectors = ActivationExtractor(backend, engine.settings).extract_batch([{"system": None, "user": "Hi"}])
    assert vectors and all(vector.isfinite().all() for vector in vectors.values())
