"""What was projected, token by token, while replies were written or when messages were read again.

The inspection chooses what the inspector shows, and has messages read again whose projections nobody kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from textual.message import Message

from persona_tui.chat.reread import Spoken, spoken
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import Mix, layers_text
from persona_tui.tui.blocks import MessageBlock
from persona_tui.tui.messages import ChoicesRead, HeatRead, MessageReread
from persona_tui.tui.screens.inspector import InspectorScreen
from persona_tui.tui.widgets.inspector import Inspector, InspectorState
from persona_tui.tui.widgets.token_view import AXES, TokenValue

if TYPE_CHECKING:  # torch is not imported before the first paint
    from persona_tui.chat import Conversation, Node
    from persona_tui.chat.replies import ReplyRow
    from persona_tui.model.results import TokenEvent
    from persona_tui.pictures.choices import TokenChoice
    from persona_tui.pictures.heat import HeatMap
    from persona_tui.steering.engine import SteeringEngine
    from persona_tui.tui.stage import AppStage

ASSISTANT = "assistant"
ROOMY = 180  # columns from which on the inspector stands beside the chat
_SIGMA = "σ"


@dataclass(frozen=True)
class TokenReading:
    """A token as it was chosen.

    Attributes:
        text: what it added.
        projections: by direction.
        lifted: how far the floor lifted it.
        entropy: of its choice, nats.
        nats: how much more probable steering made it; None = no guide read along.
    """

    text: str
    projections: Mapping[str, float]
    lifted: float = 0.0
    entropy: float = 0.0
    nats: float | None = None

    def on(self, direction: str) -> TokenValue:
        """Return its value on one direction."""
        return TokenValue(self.text, self.projections.get(direction), self.lifted)


def readings_of(events: Iterable[TokenEvent]) -> list[TokenReading]:
    """Return the readings of tokens; events without one are left out."""
    return [
        TokenReading(event.text, event.projections, event.capped, event.entropy, event.nats)
        for event in events
        if event.token_id >= 0
    ]


class MessageReadings:
    """Keeps them by message, for one conversation."""

    def __init__(self) -> None:
        self._by_message: dict[int, dict[int, TokenReading]] = {}

    def clear(self) -> None:
        """Forget everything: it is another conversation."""
        self._by_message.clear()

    def add(self, message: int, start: int, events: Iterable[TokenEvent]) -> None:
        """Take tokens of a message, whose places are counted from `start`."""
        kept = self._by_message.setdefault(message, {})
        for event in events:
            if event.token_id >= 0:
                kept[start + event.index] = readings_of([event])[0]

    def of(self, message: int) -> Mapping[int, TokenReading]:
        """Return the readings of a message, by place; as many as there are."""
        return self._by_message.get(message, {})


@dataclass(frozen=True)
class _Subject:
    """What is known of the message that is inspected."""

    tokens: Sequence[TokenValue] = field(default_factory=tuple)
    mix: Mix | None = None
    note: str = ""
    choices: Sequence[TokenChoice] = ()


class Inspection:
    """Owns what was read, and which message and direction are shown."""

    def __init__(self, app: AppStage) -> None:
        self._app = app
        self._direction = ASSISTANT
        self._layers: dict[str, str] = {}  # of every direction, in words
        self._block: MessageBlock | None = None  # None = the last reply, whichever that is
        self._readings = MessageReadings()
        self._asked: set[tuple[int, str]] = set()  # messages and directions that were read again for
        self._notes: dict[int, str] = {}
        self.row_of: Callable[[MessageBlock], ReplyRow | None] = lambda block: None  # of answers side by side
        self._choices: dict[int, Sequence[TokenChoice]] = {}  # by reply; () = asked for
        self._heat: dict[tuple[int, str], HeatMap | None] = {}  # by reply and direction; None = asked for
        self.asking: set[int] = set()  # replies whose tokens' probabilities are on their way
        self._cut_anew: set[int] = set()  # messages whose tokens are not those of the transcript

    # --- opening

    def toggle(self) -> None:
        """Show the marked message, or the last reply, token by token; or close the inspector.

        Raises:
            PersonaTuiError: there is nothing to inspect.
        """
        app = self._app
        if isinstance(app.screen, InspectorScreen):
            app.screen.dismiss()
        elif app.main.inspector.display and app.main.inspector.has_focus_within:
            self.close()
        else:
            self.open()

    def open(self, message: int | None = None) -> None:
        """Show a message of the path by its number; None = the marked one, or the last reply.

        Raises:
            PersonaTuiError: there is none, or the model is still loading.
        """
        app = self._app
        app.check_model()
        if not app.main.chat.messages:
            raise PersonaTuiError("there is no message to inspect yet")
        self._block = self._wanted(message)
        self._look_up()
        if self._has_room:
            app.main.inspector.display = True
            app.main.set_focus(app.main.inspector.view)
            self.show()
        else:
            app.push_screen(InspectorScreen())
            app.call_after_refresh(self.show)

    def _wanted(self, message: int | None) -> MessageBlock | None:
        if message is None:
            return next((log.marked for log in self._app.main.split.logs if log.marked is not None), None)
        for block in self._app.main.chat.messages:
            if block.key == message:
                return block
        raise PersonaTuiError(f"there is no message {message} on the screen: /branch lists them")

    def close(self) -> None:
        """Close what stands beside the chat."""
        self._app.main.inspector.display = False
        self._app.main.set_focus(self._app.main.prompt)

    def fit(self) -> None:
        """Follow the size of the terminal: where there is no room beside the chat, nothing stands there."""
        if self._app.main.inspector.display and not self._has_room:
            self.close()

    @property
    def _has_room(self) -> bool:
        return self._app.size.width >= ROOMY

    @property
    def _view(self) -> Inspector | None:
        """The inspector on the screen, if there is one."""
        screen = self._app.screen
        if isinstance(screen, InspectorScreen):
            return screen.inspector if screen.is_mounted and screen.query(Inspector) else None
        return self._app.main.inspector if self._app.main.inspector.display else None

    # --- choosing

    def marked(self, block: MessageBlock) -> None:
        """Show a message that was marked in the chat, if the inspector stands beside it."""
        if self._app.main.inspector.display:
            self._block = block
            self.show()

    def turned(self, what: str, step: int) -> None:
        """Show another direction, or another message."""
        if what == "direction":
            self._turn_direction(step)
        else:
            self._turn_message(step)
        self.show()

    def _turn_direction(self, step: int) -> None:
        self._look_up()
        names = list(self._layers)
        if names:
            place = names.index(self._direction) if self._direction in names else -1
            self._direction = names[(place + step) % len(names)]

    def _turn_message(self, step: int) -> None:
        messages, now = self._app.main.chat.messages, self._subject_block()
        if now in messages:
            place = max(min(messages.index(now) + step, len(messages) - 1), 0)
            self._block = messages[place]

    def _look_up(self) -> None:
        """Find out what a message can be projected on now: the axes first."""
        engine = self._app.project.loaded_engine
        traces = engine.traces() if engine is not None else {}
        names = sorted(traces, key=lambda name: (name not in AXES, name))
        self._layers = {name: layers_text(sorted(traces[name].vectors)) for name in names}
        if engine is not None:
            from persona_tui.traits.vector import weakness_of

            weak = [name for name in names if weakness_of(engine.personas, name)]
            self._layers |= {name: f"{self._layers[name]} · weak" for name in weak}
        if self._direction not in self._layers and names:
            self._direction = names[0]

    def _subject_block(self) -> MessageBlock | None:
        """Return the message that is shown. The chat may have another block for it by now."""
        messages = [block for log in self._app.main.split.logs for block in log.messages]
        if self._block is not None:
            for block in messages:
                if block is self._block or (block.key is not None and block.key == self._block.key):
                    return block
        replies = [block for block in self._app.main.chat.messages if block.role == "assistant"]
        return replies[-1] if replies else next(iter(messages), None)

    # --- what was read

    def take(self, message: int, start: int, events: Iterable[TokenEvent]) -> None:
        """Keep what was projected while a reply was written; its tokens are counted from `start`."""
        self._readings.add(message, start, events)
        self._choices.pop(message, None)  # of a reply that goes on, they are not all there any more
        self._heat = {key: found for key, found in self._heat.items() if key[0] != message}
        self.show()

    def read(self, message: int) -> list[TokenReading]:
        """Return what is known of a reply's tokens, first to last; nothing if it was never measured here."""
        kept = self._readings.of(message)
        return [kept[place] for place in sorted(kept)]

    def forget(self) -> None:
        """Begin with another conversation."""
        self._readings.clear()
        self._asked.clear()
        self._notes.clear()
        self._choices.clear()
        self._heat.clear()
        self.asking.clear()
        self._cut_anew.clear()
        self._block = None
        self.show()

    def reread(self, message: MessageReread) -> None:
        """Take the result of reading a message again."""
        if message.conversation is not self._app.chat.conversation:
            return
        if message.error is not None:
            self._notes[message.node] = str(message.error)
        elif message.result is not None:
            result = message.result
            self._readings.add(message.node, 0, result.events)
            if not result.own_tokens:
                self._cut_anew.add(message.node)
            gone = f"read without {result.missing}, which is gone" if result.missing else ""
            self._notes[message.node] = gone
        self.show()

    # --- how probable the tokens were

    def choices_of(self, node: Node) -> Sequence[TokenChoice]:
        """Return how probable a reply's tokens were; while that is not known, nothing: then it is asked."""
        if node.id not in self._choices and node.role == "assistant" and not self._app.busy:
            self._choices[node.id] = ()
            self._ask_choices(node)
        return self._choices.get(node.id, ())

    def _ask_choices(self, node: Node) -> None:
        conversation, project = self._app.chat.conversation, self._app.project

        def read(said: Spoken) -> ChoicesRead:
            from persona_tui.pictures.choices import token_choices

            found = token_choices(project.model, project.engine, said.messages, said.reply, said.mixes)
            return ChoicesRead(conversation, node.id, found)

        if self._submit(node, read, lambda error: ChoicesRead(conversation, node.id, [], error)):
            self.asking.add(node.id)

    def _submit(
        self, node: Node, read: Callable[[Spoken], Message], failed: Callable[[Exception], Message]
    ) -> bool:
        """Have the model's thread read a reply as it was spoken; False if that is not known, or not here."""
        project, post = self._app.project, self._app.post_message
        said = spoken(self._app.chat.conversation, node.id)
        if isinstance(said.reply, str) or _model_of(node) != {project.model.fingerprint}:
            return False

        def work() -> None:
            try:
                with project.model.rendered_as(said.rendering):
                    post(read(said))
            except Exception as error:
                post(failed(error))

        self._app.worker.submit_turn(work)
        return True

    def choices_read(self, message: ChoicesRead) -> None:
        """Take note of how probable a reply's tokens were."""
        if message.conversation is not self._app.chat.conversation:
            return
        self.asking.discard(message.node)
        if message.error is not None and not isinstance(message.error, PersonaTuiError):
            self._app.failed(message.error)
        elif message.error is not None and not self._notes.get(message.node):
            self._notes[message.node] = f"no probabilities: {message.error}"
        self._choices[message.node] = message.choices
        self.show()

    # --- how strong the direction was, layer by layer

    def _heat_of(self, node: Node) -> HeatMap | None:
        """Return the layers of a reply on the direction that is looked at; None: not known yet, or at all."""
        key = (node.id, self._direction)
        if key not in self._heat and node.role == "assistant" and not self._app.busy:
            self._heat[key] = None
            self._ask_heat(node, key)
        return self._heat.get(key)

    def _ask_heat(self, node: Node, key: tuple[int, str]) -> None:
        conversation, project = self._app.chat.conversation, self._app.project

        def read(said: Spoken) -> HeatRead:
            from persona_tui.pictures.heat import heat_map

            return HeatRead(
                conversation, key, heat_map(project.engine, said.messages, said.reply, key[1], said.mixes)
            )

        self._submit(node, read, lambda error: HeatRead(conversation, key, None, error))

    def heat_read(self, message: HeatRead) -> None:
        """Take note of a reply's layers. A direction that has none is shown without them."""
        if message.conversation is not self._app.chat.conversation:
            return
        if message.error is not None and not isinstance(message.error, PersonaTuiError):
            self._app.failed(message.error)
        self._heat[message.key] = message.found
        self.show()

    def known_choices(self, node: Node) -> Sequence[TokenChoice]:
        """Return how probable a reply's tokens were, if that is known."""
        return self._choices.get(node.id, ())

    def values_of(self, node: Node) -> Sequence[TokenValue]:
        """Return a message's projections on the direction that is looked at, as far as they are known."""
        self._look_up()
        return self._of_node(node, self._app.chat.conversation).tokens

    @property
    def direction(self) -> str:
        """What messages are projected on."""
        return self._direction

    def token_in_hand(self, place: int) -> tuple[Node, int]:
        """Return the reply that is shown, and which of its tokens stands at a place.

        Raises:
            PersonaTuiError: it is no reply of the conversation, or its tokens are not known.
        """
        block = self._subject_block()
        node = self._app.chat.conversation.node(block.key) if block is not None and block.key else None
        if node is None or node.role != "assistant" or not place < len(node.token_texts):
            raise PersonaTuiError("only a reply whose tokens are known can go on differently")
        return node, place

    def _read_again(self, node: Node) -> None:
        """Have the model's thread read a message, once for every direction that is missing."""
        if (node.id, self._direction) in self._asked:
            return
        self._asked.update((node.id, name) for name in [*self._layers, self._direction])
        self._notes[node.id] = "reading …"
        project, post = self._app.project, self._app.post_message
        conversation, id = self._app.chat.conversation, node.id

        def work() -> None:
            try:
                from persona_tui.chat.reread import reread

                post(MessageReread(conversation, id, reread(project.engine, conversation, id)))
            except Exception as error:
                post(MessageReread(conversation, id, None, error))

        self._app.worker.submit_turn(work)

    # --- showing

    def show(self) -> None:
        """Draw the inspector, if it is open."""
        view = self._view
        if view is not None:
            view.show(self._state())

    def _state(self) -> InspectorState:
        block, engine = self._subject_block(), self._app.project.loaded_engine
        if block is None or engine is None:
            return InspectorState(title="no message yet")
        subject = self._subject(block)
        which = f" · #{block.key}" if block.key is not None else ""
        heat = self._heat_of(self._app.chat.conversation.node(block.key)) if block.key is not None else None
        return InspectorState(
            block.serial if block.key is None else block.key,
            f"{block.who}{which} · {len(subject.tokens)} tokens",
            self._direction,
            self._layers.get(self._direction, ""),
            _SIGMA if self._direction in AXES else "",
            _floor(engine, self._direction, subject.mix),
            subject.tokens,
            subject.note,
            subject.choices,
            engine.lift_reading(self._direction, subject.mix) if subject.mix is not None else None,
            heat if heat is not None and len(heat.tokens) == len(subject.tokens) else None,
            block.key in self.asking,
        )

    def _subject(self, block: MessageBlock) -> _Subject:
        row = self.row_of(block)
        if row is not None:
            return _Subject([each.on(self._direction) for each in readings_of(row.events)], row.mix)
        if block.key is None:
            return _Subject(note="it can be inspected once you keep one of the answers")
        node = self._app.chat.conversation.node(block.key)
        return self._of_node(node, self._app.chat.conversation)

    def _of_node(self, node: Node, conversation: Conversation) -> _Subject:
        kept = self._readings.of(node.id)
        texts = [] if node.id in self._cut_anew else list(node.token_texts)
        count = len(texts) if texts else len(kept)
        tokens = [
            kept[place].on(self._direction) if place in kept else TokenValue(texts[place] if texts else "")
            for place in range(count)
        ]
        missing = (node.text.strip() and not tokens) or any(token.value is None for token in tokens)
        if missing and not self._app.busy:  # what is being written is still on its way here
            self._read_again(node)
        choices = self.choices_of(node)
        known = choices if len(choices) == len(tokens) else ()
        return _Subject(tokens, _mix_of(node), self._notes.get(node.id, ""), known)


def _model_of(node: Node) -> set[object]:
    return {run.settings.get("fingerprint") for run in node.runs}


def _mix_of(node: Node) -> Mix | None:
    """Return what a reply was written with last, as far as that is known."""
    recorded = node.runs[-1].mix if node.runs else None
    if not recorded:
        return None
    return Mix.from_record(recorded, settled=True)


def _floor(engine: SteeringEngine, direction: str, mix: Mix | None) -> float | None:
    return engine.floor_reading(direction, mix) if mix is not None else None
