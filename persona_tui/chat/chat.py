"""One conversation without a screen: what is said, with which mix, and where it is saved.

Every front end stands on this: the line mode, the app, a server. A verb prepares everything that can fail
before it changes anything, so that after an error the chat goes on as it was.

    chat = Chat.start(project)
    for event in chat.events(chat.say("Hello.")):   # on the thread that owns the model
        print(event.text, end="")
    chat.close()
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from persona_tui.chat.conversation import Conversation
from persona_tui.chat.front import Front
from persona_tui.chat.log import SessionLog
from persona_tui.chat.other_model import guard_without_monitor, lacking_traits, mix_there
from persona_tui.chat.replies import LETTERS, ChatReply
from persona_tui.chat.review import Review, objects
from persona_tui.chat.store import SessionStore
from persona_tui.chat.voice import short_label
from persona_tui.core.errors import PersonaTuiError
from persona_tui.core.mix import TRAIT_PREFIX, Mix
from persona_tui.core.workspace import model_slug
from persona_tui.monitors.second_opinion import Validator, validator_of_environment
from persona_tui.project import models
from persona_tui.project.models import ModelChoice
from persona_tui.project.project import Project
from persona_tui.project.shape import check_depth

if TYPE_CHECKING:  # torch is not imported before a reply is written
    from persona_tui.model import Sampling, TokenEvent
    from persona_tui.steering import SteeringEngine
    from persona_tui.traits.policy import Policy


class Chat:
    """A conversation and how it is spoken.

    Replies are written on the thread that owns the model (`events`, `load`); everything else belongs to one
    other thread, which may be the same.

    Attributes:
        project: workspace, model and personas; change the model with `use_model`.
        front: where work runs.
        conversation: what was said, with its system prompt.
        sampling_changes: fields of `Sampling` that differ from the settings.
        guard: judges messages and replies.
        validator: has the last word on replies while the guard is on; None = nobody. A workspace's settings
            cannot name one: a folder from somebody else must not run commands, nor send away what is said.
        policy: which scores of traits replies may have; None = any.
        saves: whether it is saved as a session: from the first message on.
        piped: whether nobody types at a terminal; lists of sessions can leave those out.
        writing: the reply that is being written, or waits for the model.
        compared: answers side by side of which none was kept yet.
        ended: set when somebody asks to leave.
    """

    def __init__(
        self, project: Project, mix: Mix | None = None, front: Front | None = None, saves: bool = True
    ) -> None:
        """
        Args:
            project: need not have its model loaded.
            mix: what is spoken with at first; by default as the settings say.
            front: where work runs; by default here and now.
            saves: whether it is saved.
        """
        self.project = project
        self.front = front or Front()
        self.conversation = Conversation()
        self.sampling_changes: dict[str, Any] = {}
        self.guard = project.new_guard()
        self.validator: Validator | None = validator_of_environment()
        self.policy: Policy | None = None
        self.saves, self.piped = saves, False
        self.writing: ChatReply | None = None
        self.compared: ChatReply | None = None
        self.ended = False
        self._mix = mix or project.default_mix()
        self._mixing = threading.Lock()
        self._log: SessionLog | None = None

    @classmethod
    def start(
        cls,
        project: Project,
        weights: Mapping[str, float] | None = None,
        strength: float | None = None,
        saves: bool = True,
        front: Front | None = None,
    ) -> Self:
        """Begin with the settings' mix, or with some personas, which are loaded.

        Raises:
            PersonaNotFoundError: one of them does not exist.
        """
        mix = project.default_mix()
        for name in weights or {}:
            project.personas.load(name)
        chosen = mix.strength if strength is None else strength
        return cls(project, replace(mix, weights=weights or {}, strength=chosen), front, saves)

    # How it is spoken ---------------------------------------------------------------------------------------

    @property
    def mix(self) -> Mix:
        """What is spoken with."""
        return self._mix

    @property
    def label(self) -> str:
        """Who speaks and how loud, in a few characters; "" = nobody in particular."""
        return short_label(self._mix)

    def change_mix(self, **changes: Any) -> None:
        """Replace fields of the mix: from the next token on, if a reply is being written.

        Raises:
            PersonaTuiError: it cannot be spoken like that, or not be written down; the old mix stays.
        """
        check_depth(self.project, changes.get("layers") or ())
        before, mix = self._mix, replace(self._mix, **changes)
        mix = replace(mix, weights=mix.speaking)
        self._speak_with(mix)
        try:
            self._record_mix()
        except PersonaTuiError:
            self._speak_with(before)
            raise
        self.front.mixed(mix)

    def _speak_with(self, mix: Mix) -> None:
        with self._mixing:
            engine = self.project.loaded_engine
            if engine is not None:
                engine.set_mix(mix)
            self._mix = mix

    def _record_mix(self) -> None:
        """Write down what is spoken with between two replies; what changes in a reply is written there."""
        engine = self.project.loaded_engine
        if engine is None or self.writing is not None or not len(self.conversation):
            return
        if (described := engine.describe(self._mix)) != self.conversation.mix:
            self.conversation.change_mix(described)

    @property
    def sampling(self) -> Sampling:
        """How replies are sampled.

        Raises:
            GenerationError: a value out of range.
        """
        from persona_tui.model import Sampling

        return replace(Sampling.of(self.project.settings.generation), **self.sampling_changes)

    def change_sampling(self, **changes: Any) -> None:
        """Replace fields of the sampling.

        Raises:
            GenerationError: a value out of range; nothing has changed.
        """
        before = self.sampling_changes
        self.sampling_changes = {**before, **changes}
        try:
            self.sampling  # noqa: B018  # checks the values
        except PersonaTuiError:
            self.sampling_changes = before
            raise
        # Every reply has its own sampling in the transcript; this says where it was changed.
        self.note("sampling", **changes)

    @property
    def system(self) -> str | None:
        """The system prompt, if any."""
        return self.conversation.system

    def set_system(self, text: str | None) -> None:
        """Change the system prompt: it holds from the next reply on."""
        self.conversation.set_system(text)

    def set_guard(self, mode: str) -> None:
        """Guard in another mode: off, warn, refuse or critique.

        Raises:
            MonitorError: there is no such mode, or no monitor to guard with.
        """
        self.guard.set_mode(mode)
        self.note("guard", mode=self.guard.mode)

    def set_policy(self, policy: Policy | None) -> None:
        """Judge replies by another policy, whose traits are loaded; None = by none.

        Raises:
            PersonaTuiError: one of its traits does not exist here.
        """
        if policy is not None:
            names = [name.removeprefix(TRAIT_PREFIX) for name in self.project.personas.list_traits()]
            policy = policy.among(names)
            for name in policy.traits:
                self.project.personas.load(f"{TRAIT_PREFIX}{name}")
        self.policy = policy
        self.note("policy", name=policy.name if policy is not None else None)

    def note(self, kind: str, **fields: Any) -> None:
        """Have the session say that something happened, if there is one."""
        if self.conversation.record is not None:
            self.conversation.record(kind, **fields)

    # What is said -------------------------------------------------------------------------------------------

    def load(self) -> SteeringEngine:
        """Load the model unless it is; call it on the thread that owns the model.

        Raises:
            PersonaTuiError: it cannot be loaded, or not speak with the mix.
        """
        engine = self.project.engine
        with self._mixing:
            if engine.mix != self._mix:
                engine.set_mix(self._mix)
        return engine

    def say(self, text: str) -> ChatReply:
        """Say something; give the reply to `events`. If that never begins, it was not said."""
        self._begin()
        said = self.conversation.add_user(text)
        return self._reply(self.conversation.begin_reply(), said)

    def regenerate(self, message: int | None = None) -> ChatReply:
        """Answer a message again, or in place of a reply, by default the last; the old one is kept beside it.

        Raises:
            SessionError: there is nothing to answer.
        """
        self._begin()
        return self._reply(self.conversation.regenerate(message))

    def go_on(self) -> ChatReply:
        """Continue the last reply.

        Raises:
            SessionError: the last message is no reply.
        """
        self._begin()
        return self._reply(self.conversation.continue_reply())

    def edit(self, message: int, text: str) -> ChatReply | None:
        """Put another text in place of a message, beside the old one; one of the user's is answered."""
        old = self.conversation.node(message)
        self._begin()
        self.conversation.edit(message, text)
        return self._reply(self.conversation.begin_reply()) if old.role == "user" else None

    def walk(self, message: int, step: int) -> int:
        """Go to another version of a message, and to what followed that; the number of that one."""
        self.check_free()
        return self.conversation.walk(message, step)

    def go_to(self, message: int) -> int:
        """Lead the path through a message; its number."""
        self.check_free()
        return self.conversation.go_to(message)

    def compare(self, mixes: Sequence[Mix], question: str | None = None) -> ChatReply:
        """Answer a question (None = the last message) with several mixes; give the reply to `events`.

        The conversation stays as it is until `keep`. A first mix that is the present one follows it.

        Raises:
            PersonaTuiError: there is nothing to answer, or a mix names somebody who does not exist.
        """
        self.check_free()
        for name in {name for mix in mixes for name in mix.weights}:
            self.project.personas.get(name)
        follower = 0 if mixes[0] == self._mix else None
        self.writing = self.compared = ChatReply.beside(self.conversation, mixes, question, follower)
        return self.writing

    def keep(self, row: int) -> str:
        """Put one of the answers that were compared last into the conversation, the others beside it.

        Returns:
            What to say about it.

        Raises:
            PersonaTuiError: nothing was compared, or that answer is empty.
        """
        self.check_free()
        if self.compared is None:
            raise PersonaTuiError("nothing to keep yet: compare with /compare first")
        kept = self.compared
        self._open_log()
        kept.keep(row)
        self.compared = None
        self._record_mix()
        self.front.kept(kept)
        beside = [LETTERS[place] for place in kept.nodes if place != row]
        return f"Kept {LETTERS[row]}.{f' {beside[0]} stays beside it.' if beside else ''}"

    def events(self, reply: ChatReply) -> Generator[TokenEvent, None, None]:
        """Write a reply, token by token; call it on the thread that owns the model.

        Raises:
            PersonaTuiError: the model could not be loaded, or not answer. Then the reply has ended, too.
        """
        try:
            try:
                engine, sampling = self.load(), self.sampling
            except BaseException:
                reply.end("failed")
                raise
            yield from reply.write(
                engine, sampling, self.guard, self.policy, Review.under(self.guard.mode, self.validator)
            )
        finally:
            if self.writing is reply:
                self.writing = None
            if self.compared is reply and reply.empty:
                self.compared = None

    def answer_again(self, draft: ChatReply) -> ChatReply | None:
        """Begin another answer beside a draft that the model itself objects to; give it to `events`.

        Front ends call this when a reply has ended. None = the reply stands. The second answer always does.
        """
        if draft.node is None or draft.revises or draft.taken_back or not objects(draft.rows[0]):
            return None
        self.check_free()
        self.writing = draft.again(self._mix)
        return self.writing

    def write(self, reply: ChatReply) -> str:
        """Have the front end write a reply; what to show at once."""
        return self.front.write(self, reply)

    def stop(self) -> bool:
        """End the reply that is being written after the present token; whether there is one."""
        if self.writing is None:
            return False
        self.writing.stop()
        return True

    def check_free(self) -> None:
        """Raise an error that says so if a reply is being written."""
        if self.writing is not None:
            raise PersonaTuiError("a reply is being written: stop it or wait")

    def _begin(self) -> None:
        """Prepare to change the conversation. Answers that were compared belong to what it was before."""
        self.check_free()
        self._open_log()
        self.compared = None

    def _reply(self, node: int, said: int | None = None) -> ChatReply:
        self.writing = ChatReply.to(self.conversation, node, self._mix, said)
        return self.writing

    # Models -------------------------------------------------------------------------------------------------

    def use_model(self, choice: ModelChoice) -> str:
        """Load another model and talk to that; what to show at once. If it cannot be, the one in use stays.

        Raises:
            ConfigError: a device, a dtype or a quantization that does not exist.
        """
        return self.front.load(self, models.with_model(self.project, choice), choice)

    def adopt(self, other: Project, choice: ModelChoice) -> str:
        """Talk to another model, which is loaded, with the voice, guard and policy of before if it has them.

        Returns:
            What to say about it, losses included.

        Raises:
            PersonaTuiError: a reply is being written.
        """
        self.check_free()
        said = [f"Now talking to {choice.name}."]
        mix, lost = mix_there(self._mix, other)
        guard, policy = other.new_guard(self.guard.mode), self.policy
        try:
            guard.set_mode(guard.mode)
        except PersonaTuiError as error:
            lost.append(guard_without_monitor(guard, error))
        lacking = lacking_traits(policy, other)
        if lacking:
            policy = None
            lost.append(f"The policy is off: it needs {', '.join(lacking)}.")
        other.engine.set_mix(mix)
        self.project, self.guard, self.policy, self._mix = other, guard, policy, mix
        try:
            self._record_mix()
            models.RecentModels(other.workspace).add(choice)
        except PersonaTuiError as error:
            lost.append(f"That could not be saved: {error}")
        return " ".join([*said, *lost])

    # Sessions -----------------------------------------------------------------------------------------------

    @property
    def session_id(self) -> str | None:
        """What it is saved as; None while nothing was said, or if nothing is saved."""
        return self._log.id if self._log is not None else None

    @property
    def store(self) -> SessionStore:
        """All sessions of the workspace."""
        return SessionStore(self.project.workspace)

    def _open_log(self) -> None:
        """Begin to save the conversation, if that is wanted and not the case yet."""
        if not self.saves or self._log is not None:
            return
        engine = self.project.loaded_engine
        known: dict[str, Any] = {"piped": True} if self.piped else {}
        if engine is not None:
            known |= {"fingerprint": engine.model.fingerprint, "source": engine.model.source}
        log = self.store.create(self.project.settings.model.name, **known)
        if self.system:
            log.record("system", text=self.system)
        if self.conversation.title:
            log.record("title", title=self.conversation.title)
        self._log, self.conversation.record = log, log.record

    def resume(self, id: str) -> str:
        """Go on with another session as it was left, its mix included; what to say about it.

        Raises:
            SessionError: there is no such session, it is damaged, or open elsewhere.
            VectorFileError: somebody's file is damaged who speaks in it.
                After an error the conversation that was open goes on, and nobody holds the other one.
        """
        self.check_free()
        if id == self.session_id:
            return "That is this conversation."
        store = self.store
        conversation, _ = store.load(id)
        mix, gone = self._mix_in(conversation)
        info = store.info(id)
        log = store.open(id) if self.saves else None  # last: whatever fails before leaves it alone
        try:
            self._speak_with(mix)
        except BaseException:
            if log is not None:
                log.close()
            raise
        self._take(conversation, log)
        said = [f"Resumed: {info.title}{'' if info.title.endswith(tuple('.?!…')) else '.'}"]
        if gone:
            said.append(f"Personas that are gone: {', '.join(gone)}.")
        here = self.project.settings.model.name
        if model_slug(info.model) != model_slug(here):
            said.append(f"It was started with {info.model}; this is {here}.")
        return " ".join(said)

    def _mix_in(self, conversation: Conversation) -> tuple[Mix, list[str]]:
        """Return what a conversation was last spoken with, and which of its personas are gone."""
        if conversation.mix is None:
            return self._mix, []
        personas = self.project.personas
        recorded = Mix.from_record(conversation.mix)
        weights = {name: by for name, by in recorded.speaking.items() if personas.has(name)}
        for name in weights:
            personas.load(name)
        mix = replace(recorded, weights=weights)
        if self.project.loaded_engine is not None:
            self.project.loaded_engine.interventions(mix)
        return mix, [name for name in recorded.speaking if name not in weights]

    def new(self) -> str:
        """Begin another conversation, with the same system prompt; what to say about it."""
        self.check_free()
        self._take(Conversation(system=self.system), None)
        return "A new conversation."

    def _take(self, conversation: Conversation, log: SessionLog | None) -> None:
        """Go on with another conversation."""
        self.close()
        self.compared = None
        self._log, self.conversation = log, conversation
        conversation.record = log.record if log is not None else None
        self.front.opened()

    def rename(self, title: str) -> None:
        """Give the conversation a title."""
        self.conversation.rename(title)

    def close(self) -> None:
        """Write down what still waits, and let others open the session."""
        if self._log is not None:
            log, self._log, self.conversation.record = self._log, None, None
            log.close()
