"""The saved conversations: find one, go on with it, rename, export or delete it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from persona_tui.chat import SessionInfo
from persona_tui.chat.chat import Chat
from persona_tui.chat.export import write_export
from persona_tui.core.documents import printable
from persona_tui.core.errors import PersonaTuiError, SessionError
from persona_tui.core.files import restore_file
from persona_tui.tui.model_switch import short
from persona_tui.tui.screens.ask import AskScreen
from persona_tui.tui.screens.confirm import ConfirmScreen
from persona_tui.tui.screens.dialog import Dialog
from persona_tui.tui.sturdy import RowList

if TYPE_CHECKING:
    from persona_tui.tui.stage import AppStage

_EMPTY = "There are no sessions yet: every conversation is saved here from its first message."
_NONE_FOUND = "Nothing was found."
_WAIT = 0.2  # seconds after a key until the files are searched


class SessionList(RowList):
    """The rows."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select", "resume it", id="sessions_resume"),
        Binding("r", "screen.rename", "rename", id="sessions_rename"),
        Binding("x", "screen.export", "export", id="sessions_export"),
        Binding("delete", "screen.delete", "delete", id="sessions_delete"),
        Binding("slash", "screen.search", "search", id="sessions_search"),
        Binding("a", "screen.all", "all", id="sessions_all"),
    ]


class SessionsScreen(Dialog[str]):
    """A list with a search field. The answer is the session to go on with."""

    def __init__(self, chat: Chat) -> None:
        super().__init__()
        self._chat, self._store = chat, chat.store
        self._infos: dict[str, SessionInfo] = {}
        self._all = False  # whether slight ones are listed, too

    def compose(self) -> ComposeResult:
        """Return the dialog."""
        with Vertical(classes="dialog sessions") as dialog:
            dialog.border_title = "sessions"
            dialog.border_subtitle = "enter resume · / search · r rename · x export · del delete · a all · q"
            yield Input(placeholder="/ searches all messages", id="search", compact=True)
            yield SessionList(id="session-list", compact=True)
            yield Static("", id="session-note", markup=False)

    def on_mount(self) -> None:
        """Begin with the list of all."""
        self.query_one(SessionList).focus()
        self._look("")

    # --- finding

    @on(Input.Changed, "#search")
    def _search_changed(self, event: Input.Changed) -> None:
        self.set_timer(_WAIT, lambda: self._look(event.value) if event.value == self._wanted else None)

    @property
    def _wanted(self) -> str:
        return self.query_one("#search", Input).value

    @on(Input.Submitted, "#search")
    def _to_list(self) -> None:
        self.query_one(SessionList).focus()

    @work(thread=True, exclusive=True, exit_on_error=False)
    def _look(self, text: str) -> None:
        """Read the files, of which there may be many, beside the screen's thread."""
        if text.strip():
            found = {hit.session.id: (hit.session, hit.excerpt) for hit in reversed(self._store.search(text))}
            rows = list(reversed(found.values()))
        else:
            rows = [(info, "") for info in self._store.list()]
        hidden = 0 if self._all or text.strip() else sum(info.is_slight for info, _ in rows)
        rows = [row for row in rows if not hidden or not row[0].is_slight]
        self.app.call_from_thread(self._show, text, rows, hidden)

    def _show(self, text: str, rows: Sequence[tuple[SessionInfo, str]], hidden: int) -> None:
        if text != self._wanted or not self.is_mounted:
            return
        self._infos = {info.id: info for info, _ in rows}
        options = self.query_one(SessionList)
        marked = self._marked
        options.set_options([Option(self._row(info, excerpt), id=info.id) for info, excerpt in rows])
        ids = list(self._infos)
        options.highlighted = (ids.index(marked.id) if marked and marked.id in ids else 0) if ids else None
        left_out = f"{hidden} of one question or none are left out: a lists them, too." if hidden else ""
        self._say(left_out or ("" if rows else _NONE_FOUND if text else _EMPTY))

    def _row(self, info: SessionInfo, excerpt: str) -> Content:
        here = info.id == self._chat.session_id
        facts = [info.voice or "no persona", f"{info.messages} messages", short(info.model)]
        about = info.problem or " · ".join(fact for fact in facts if fact)
        below = excerpt if excerpt and excerpt != info.title else info.last
        return Content.assemble(
            ("● " if here else "  ", "$text-accent"),
            (f"{_when(info.used)}  ", "dim"),
            (printable(info.title), "bold" if here else ""),
            (f"  {printable(about)}", "$text-error" if info.problem else "dim"),
            "\n              ",
            self._matched(printable(below)),
        )

    def _matched(self, text: str) -> Content:
        """Return a line with the words that were searched for."""
        line, wanted = Content.styled(text, "dim italic"), self._wanted.strip().casefold()
        start = text.casefold().find(wanted) if wanted else -1
        return line if start < 0 else line.stylize("$text-accent bold", start, start + len(wanted))

    # --- doing

    @property
    def _marked(self) -> SessionInfo | None:
        option = self.query_one(SessionList).highlighted_option
        return self._infos.get(option.id or "") if option is not None else None

    @on(OptionList.OptionSelected)
    def _resume(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.dismiss(event.option_id)

    def action_search(self) -> None:
        """Go to the search field."""
        self.query_one("#search").focus()

    def action_all(self) -> None:
        """List all sessions, or leave out the slight ones again."""
        self._all = not self._all
        self._look(self._wanted)

    def action_rename(self) -> None:
        """Ask for another title."""
        if info := self._marked:
            self._ask(
                AskScreen(
                    "rename", "The title:", info.title, lambda text: None if text else "Give it a title."
                ),
                lambda title: self._rename(info.id, title),
            )

    def action_export(self) -> None:
        """Ask for a file, and write the session there."""
        if info := self._marked:
            self._ask(
                AskScreen(
                    "export",
                    "Which file? .md is Markdown for people, .json is for programs.",
                    f"{info.id}.md",
                ),
                lambda name: self._say(f"Wrote {write_export(self._store, info.id, Path(name)).absolute()}."),
            )

    def action_delete(self) -> None:
        """Delete it, after asking."""
        if info := self._marked:
            self._try(lambda: self._delete(info))

    def _rename(self, id: str, title: str) -> None:
        if id == self._chat.session_id:
            self._chat.rename(title)
        else:
            self._store.rename(id, title)

    def _delete(self, info: SessionInfo) -> None:
        if info.id == self._chat.session_id:
            raise SessionError("this conversation is open: start another one first (/new)")

        def answered(yes: bool | None) -> None:
            if yes:
                self._try(lambda: self._trash(info))
                self._look(self._wanted)

        question = f"Delete the session {info.title!r}? {self.owner.key_label('undelete')} brings it back."
        self.app.push_screen(ConfirmScreen(question, "Delete", "Keep"), answered)

    def _trash(self, info: SessionInfo) -> None:
        trashed = self._store.delete(info.id)

        def restore() -> None:
            restore_file(trashed)
            if self.is_attached:
                self._look(self._wanted)

        self.owner.deleted(f"The session {info.title!r}", restore)

    @property
    def owner(self) -> AppStage:
        """The app, as what it is."""
        return cast("AppStage", self.app)

    def _ask(self, screen: AskScreen, act: Callable[[str], object]) -> None:
        def answered(text: str | None) -> None:
            if text:
                self._try(lambda: act(text))
                self._look(self._wanted)

        self.app.push_screen(screen, answered)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except PersonaTuiError as error:
            self._say(f"Error: {error}")

    def _say(self, text: str) -> None:
        note = self.query_one("#session-note", Static)
        note.update(text)
        note.set_class(text.startswith("Error"), "-error")


def _when(stamp: str) -> str:
    """Return a time in words that sort out which is which: `today 14:05`, `3 Nov 14:05`, `3 Nov 2025`."""
    try:
        then = datetime.fromisoformat(stamp.replace("Z", "+00:00")).astimezone()
    except ValueError:
        return "?".ljust(11)
    now = datetime.now(UTC).astimezone()
    if then.date() == now.date():
        text = f"today {then:%H:%M}"
    elif then.year == now.year:
        text = f"{then.day} {then:%b} {then:%H:%M}"
    else:
        text = f"{then.day} {then:%b %Y}"
    return text.ljust(12)
