"""How the app feels, measured through a pseudo-terminal as a user's terminal would see it.

    python benchmarks/app.py [--only keys tokens ...] [-o app.md]      about five minutes on two cores
    python benchmarks/app.py --quick                                   little of everything

The app is the real command (`python -m persona_tui`) in a copy of the workspace, 120 by 40. A key's latency
is the time from writing it to the terminal to reading what it has painted: letters that no text contains are
typed into the prompt, at random moments. The conversation has 60 turns; the tiny model, kept from ending
its replies, answers the last one again and again meanwhile, or makes a persona.

Times depend on what else the machine does; the CPU seconds of the app's process, and ratios of what took
turns, much less.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil  # comes with accelerate
from measuring import REPOSITORY, machine, table
from terminal import Terminal, talkative_model

from persona_tui.core.log_file import QUIET
from persona_tui.core.workspace import model_slug

PAST_TURNS = 60
SIZE = (120, 40)
PERSONA, STRENGTH = "sage", 0.3
CONFIG = """
model: {{name: {model}}}
generation: {{max_new_tokens: 400, seed: 7}}
"""
LETTERS = [chr(code) for code in (*range(0x400, 0x482), *range(0x48A, 0x530), *range(0x531, 0x557))]
ESCAPE, CTRL_Q, CTRL_U, F5, ENTER = "\x1b", "\x11", "\x15", "\x1b[15~", "\r"
LONGEST = 60  # seconds to wait for anything

_REPLIES = ("message", "reply", "tokens", "end")
_MODULE = ("-m", "persona_tui")

# Says when the interpreter was there, and when torch was looked for; then it is `python -m persona_tui`.
_STARTER = """
import sys, time
began, path = time.perf_counter(), sys.argv.pop(1)
def say(what, when):
    with open(path, "a") as file:
        print(what, when, file=file)
say("began", began)
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            say("torch", time.perf_counter())
sys.meta_path.insert(0, Watch())
import runpy
runpy.run_module("persona_tui", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Finding:
    """One line of the result: what was measured, what came out, what was aimed at, and whether it was met."""

    what: str
    found: str
    aim: str
    met: bool
    cpu: str = ""

    def row(self) -> tuple[str, ...]:
        """As the table has it."""
        return (self.what, self.found, self.aim, "yes" if self.met else "**no**", self.cpu)


HEADER = ("what", "found", "aim", "met", "CPU")


@dataclass(frozen=True)
class Effort:
    """How much is measured: key presses, rounds of everything else, seconds of idling."""

    keys: int = 150
    rounds: int = 5
    idle: float = 20


QUICK = Effort(10, 2, 2)


# Workspaces -------------------------------------------------------------------------------------------------


@contextmanager
def workspace() -> Iterator[Path]:
    """A copy of what the package ships, and a model that goes on talking, gone afterwards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = talkative_model(folder / "model")
        ignored = shutil.ignore_patterns("partial", ".lock", "loaded.json")
        shutil.copytree(REPOSITORY / "datasets", folder / "datasets", ignore=ignored)
        vectors = folder / "vectors" / model_slug(str(model))
        shutil.copytree(REPOSITORY / "vectors" / "builtin", vectors, ignore=ignored)
        (folder / "config.yaml").write_text(CONFIG.format(model=json.dumps(str(model))), encoding="utf-8")
        yield folder


def write_session(folder: Path, turns: int = PAST_TURNS) -> str:
    """Write a session of many turns, some with lists and code; its id."""
    from persona_tui.chat import Conversation, SessionStore
    from persona_tui.core.workspace import Workspace

    lines = (folder / "datasets/personas/extraction_questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = itertools.cycle([json.loads(line)["question"] for line in lines if line])
    log = SessionStore(Workspace(folder)).create(str(folder / "model"))
    conversation = Conversation(log.record)
    for turn, question in zip(range(turns), questions, strict=False):
        conversation.add_user(question)
        reply = conversation.begin_reply()
        conversation.extend(reply, _past_reply(turn))
        conversation.finish(reply, tokens=30)
    log.close()
    return log.id


def _past_reply(turn: int) -> str:
    kinds = (
        f"The answer to question {turn} is **short**: begin with what is near, and *wait* for the rest.",
        "Three things help:\n\n- a plan\n- a friend\n- a good night's sleep",
        f"In code:\n\n```python\nfor step in range({turn}):\n    walk(step)\n```",
    )
    return kinds[turn % len(kinds)]


# The app ----------------------------------------------------------------------------------------------------


class App(Terminal):
    """The app in a pseudo-terminal, and what it writes down."""

    def __init__(
        self, folder: Path, *arguments: str, starter: tuple[str, ...] = ("-m", "persona_tui")
    ) -> None:
        """
        Args:
            folder: the workspace.
            arguments: of the command line.
            starter: of the interpreter.
        """
        command = [sys.executable, *starter, "--workspace", str(folder), *arguments]
        # Modules are compiled once, as where it is installed; some workplaces switch that off.
        super().__init__(command, SIZE, {"PYTHONDONTWRITEBYTECODE": ""}, str(REPOSITORY))
        self.folder = folder
        self._path: Path | None = None
        self._read_to = 0
        self._events: list[dict[str, Any]] = []
        self._usage = psutil.Process(self.process.pid)

    def ready(self) -> App:
        """Wait until the model is loaded and the first fuss is over."""
        self.wait_for(lambda text: "loading" not in text and "capping" in text, LONGEST)
        self.settle(1.0)
        return self

    def settle(self, seconds: float) -> None:
        """Take in what the app writes, for some seconds."""
        until = time.perf_counter() + seconds
        while (left := until - time.perf_counter()) > 0:
            self.read(left)

    def cpu(self) -> float:
        """The CPU seconds of its process so far."""
        times = self._usage.cpu_times()
        return float(times.user + times.system)

    def screen_cpu(self) -> float:
        """The CPU seconds so far of the thread that draws, which is the process' first."""
        times = next(each for each in self._usage.threads() if each.id == self.process.pid)
        return float(times.user_time + times.system_time)

    def say(self, text: str) -> None:
        """Type a line and send it."""
        self.send(text)
        self.settle(0.3)  # so that no list of completions takes the enter
        self.send(ENTER)

    # --- the session

    def session(self) -> Path | None:
        """The file of the session that was begun last."""
        return max(self.folder.glob("sessions/*.jsonl"), key=lambda path: path.name, default=None)

    def events(self) -> list[dict[str, Any]]:
        """What the session that was begun last has in its file."""
        path = self.session()
        if path != self._path:
            self._path, self._read_to, self._events = path, 0, []
        if path is not None:
            with path.open("rb") as file:
                file.seek(self._read_to)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read_to += len(whole)
            self._events += map(json.loads, whole.splitlines())
        return self._events

    def kinds(self, kind: str) -> list[dict[str, Any]]:
        """Those of one kind."""
        return [event for event in self.events() if event["kind"] == kind]

    def writing(self) -> bool:
        """Whether a reply is being written, and has words."""
        last = next((event["kind"] for event in reversed(self.events()) if event["kind"] in _REPLIES), "")
        return last == "tokens"

    def resting(self) -> bool:
        """Whether no reply is being written."""
        return len(self.kinds("reply")) == len(self.kinds("end"))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Take in what the app writes until something holds."""
        deadline = time.perf_counter() + LONGEST
        while not condition():
            if time.perf_counter() > deadline:
                raise SystemExit(f"never happened: {condition}\n{self.screen.text}")
            self.read(0.02)

    def stream(self) -> None:
        """Make sure that a reply is being written."""
        while not self.writing():
            if self.resting():
                self._again()
            self.wait_until(lambda: self.writing() or self.resting())

    def _again(self) -> None:
        """Have the last reply written anew."""
        begun = len(self.kinds("reply"))
        while len(self.kinds("reply")) == begun:
            self.send(F5)  # in vain while the end of the reply before is not on the screen yet
            self.settle(0.5)

    def extract(self, name: str = "wizard") -> None:
        """Begin to make a persona, and wait until that is under way."""
        self.say(f"/create {name} a grumpy old wizard with a good heart")
        self.wait_until(self.extracting)

    def extracting(self) -> bool:
        """Whether a persona is being made."""
        return bool(re.search(r"create \w+ +\d+%", self.screen.text))


@contextmanager
def long_chat(folder: Path) -> Iterator[App]:
    """The app with a session of 60 turns, ready."""
    arguments = ("--persona", PERSONA, "--strength", str(STRENGTH))
    with App(folder, "chat", *arguments, "--resume", write_session(folder)) as app:
        yield app.ready()


# Keys -------------------------------------------------------------------------------------------------------


def _nothing() -> None:
    pass


def _always() -> bool:
    return True


def latencies(
    app: App, presses: int, before: Callable[[], None] = _nothing, holds: Callable[[], bool] = _always
) -> list[float]:
    """Type letters at random moments; seconds until each was painted.

    Args:
        app: with the focus in its prompt.
        presses: how many.
        before: called before every one, to bring about what should be going on.
        holds: whether that goes on; a press after which it does not is not counted.
    """
    chance, found = random.Random(1), list[float]()
    for count, letter in enumerate(itertools.cycle(LETTERS)):
        if len(found) == presses:
            break
        if count % 50 == 0:
            app.send(CTRL_U)
        app.settle(chance.uniform(0.05, 0.25))
        before()
        seconds = _latency(app, letter)
        if holds():
            found.append(seconds)
    return found


def _latency(app: App, letter: str) -> float:
    app.settle(0)
    sent = time.perf_counter()
    app.send(letter)
    while letter not in app.read(1.0):
        if time.perf_counter() - sent > LONGEST:
            raise SystemExit(f"{letter} was never painted\n{app.screen.text}")
    return app.read_at - sent


def percentile(values: list[float], percent: float) -> float:
    """The value below which so many per cent lie."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]


def _keys_finding(what: str, app: App, presses: int, *conditions: Any, **more: Any) -> Finding:
    cpu, began = app.cpu(), time.perf_counter()
    found = [1000 * seconds for seconds in latencies(app, presses, *conditions, **more)]
    busy = (app.cpu() - cpu) / (time.perf_counter() - began)
    p95, title = percentile(found, 95), f"key → paint, {PAST_TURNS} past turns, {what}"
    text = f"p50 {median(found):.0f} ms, p95 {p95:.0f} ms, most {max(found):.0f} ms ({len(found)} keys)"
    return Finding(title, text, "p95 ≤ 60 ms", p95 <= 60, _share(busy))


def _share(busy: float) -> str:
    return f"{busy:.0%} of a core"


def keys_resting(effort: Effort) -> list[Finding]:
    """While nothing else goes on."""
    with workspace() as folder, long_chat(folder) as app:
        return [_keys_finding("nothing going on", app, effort.keys)]


def keys_writing(effort: Effort) -> list[Finding]:
    """While the model writes."""
    with workspace() as folder, long_chat(folder) as app:
        return [_keys_finding("a reply being written", app, effort.keys, app.stream, app.writing)]


def keys_extracting(effort: Effort) -> list[Finding]:
    """While a persona is made."""
    with workspace() as folder, long_chat(folder) as app:
        app.extract()
        return [_keys_finding("a persona being made", app, effort.keys, holds=app.extracting)]


# Idling -----------------------------------------------------------------------------------------------------


def idle(effort: Effort) -> list[Finding]:
    """What the app costs while nobody does anything."""
    with workspace() as folder, long_chat(folder) as app:
        app.settle(5)
        cpu = app.cpu()
        app.settle(effort.idle)
        share = (app.cpu() - cpu) / effort.idle
        return [Finding(f"idle for {effort.idle:g} s", f"{share:.2%} of a core", "≤ 2%", share <= 0.02)]


# Stopping and quitting --------------------------------------------------------------------------------------


def stop(effort: Effort) -> list[Finding]:
    """How many tokens follow when somebody presses esc: the session says where that was."""
    after, seconds = [], []
    with workspace() as folder, long_chat(folder) as app:
        for _ in range(2 * effort.rounds):
            app.stream()
            app.settle(0.3)
            if not app.writing():
                continue
            ended = len(app.kinds("end"))
            sent = time.perf_counter()
            app.send(ESCAPE)
            app.wait_until(lambda ended=ended: len(app.kinds("end")) > ended)  # type: ignore[misc]
            seconds.append(time.perf_counter() - sent)
            after.append(_tokens_after_stop(app.events()))
    text = f"{max(after)} at most, of {len(after)} times; esc → ended {median(seconds):.2f} s"
    return [Finding("tokens after a stop", text, "≤ 1", max(after) <= 1)]


def _tokens_after_stop(events: list[dict[str, Any]]) -> int:
    place = max(number for number, event in enumerate(events) if event["kind"] == "stop")
    return sum(len(event["ids"]) for event in events[place:] if event["kind"] == "tokens")


def quitting(effort: Effort) -> list[Finding]:
    """How long ctrl+q takes while a reply is written, and while a persona is made."""
    return [
        _quit("a reply being written", App.stream, effort),
        _quit("a persona being made", _extract, effort),
    ]


def _extract(app: App) -> None:
    app.extract()


def _quit(what: str, begin: Callable[[App], None], effort: Effort) -> Finding:
    seconds, statuses = [], []
    for _ in range(effort.rounds):
        with workspace() as folder, long_chat(folder) as app:
            begin(app)
            sent = time.perf_counter()
            app.send(CTRL_Q)
            while app.process.poll() is None:
                app.read(0.005)
            seconds.append(time.perf_counter() - sent)
            statuses.append(app.process.returncode)
    text = f"median {median(seconds):.2f} s, most {max(seconds):.2f} s; status {max(statuses)}"
    return Finding(f"quit, {what}", text, "≤ 0.5 s", max(seconds) <= 0.5 and not any(statuses))


# Starting ---------------------------------------------------------------------------------------------------


def start(effort: Effort) -> list[Finding]:
    """From the first line of Python to the first paint; torch must not be looked for before that."""
    paints, torch, cpus = [], [], []
    with workspace() as folder:
        said = folder / "said"
        for number in range(2 * effort.rounds + 1):
            said.unlink(missing_ok=True)
            with App(folder, starter=("-c", _STARTER, str(said))) as app:
                painted = app.wait_for("enter sends", LONGEST)
                cpu = app.cpu()
                app.wait_until(lambda: "torch" in said.read_text())
                times = dict(line.split() for line in said.read_text().splitlines())
            if number:  # the first run fills the caches
                paints.append(painted - float(times["began"]))
                torch.append(float(times["torch"]) - painted)
                cpus.append(cpu)
    text = f"median {median(paints):.2f} s, least {min(paints):.2f} s, most {max(paints):.2f} s"
    early = sum(each < 0 for each in torch)
    return [
        Finding("first paint", text, "≤ 0.4 s", median(paints) <= 0.4, f"{median(cpus):.2f} s in all"),
        Finding("torch imported before it", f"{early} of {len(torch)} times", "never", not early),
    ]


# Speed ------------------------------------------------------------------------------------------------------

QUESTION = "Tell me a long story about a walk by the sea."

# What `persona-tui generate` does, again and again in one process, so that it has warmed up as the app has.
_GENERATE = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
from persona_tui.project.project import Project
folder, persona, strength, question = sys.argv[1:]
project = Project.open(Path(folder))
mix = replace(project.default_mix(), weights={persona: 1.0}, strength=float(strength))
for line in sys.stdin:
    cpu = time.process_time()
    reply = project.engine.reply([{"role": "user", "content": question}], mix=mix)
    cpu = time.process_time() - cpu
    print(json.dumps({"tokens": reply.tokens, "seconds": reply.seconds, "cpu": cpu}), flush=True)
"""


@dataclass(frozen=True)
class Speed:
    """What one reply took."""

    tokens: int
    seconds: float
    cpu: float
    screen: float = 0.0  # of that, seconds of the thread that draws


def speed(effort: Effort) -> list[Finding]:
    """Tokens per second in the app and of `generate`, in turns: the same question, seed and persona."""
    ours, theirs = list[Speed](), list[Speed]()
    options = ("chat", "--persona", PERSONA, "--strength", str(STRENGTH))
    with workspace() as folder, generator(folder) as generate, App(folder, *options) as app:
        app.ready()
        for number in range(2 * effort.rounds + 1):
            pair = _answer(app), generate()
            if pair[0].tokens != pair[1].tokens:
                raise SystemExit(f"not the same reply: {pair}")
            if number:  # the first one is to warm up
                ours.append(pair[0])
                theirs.append(pair[1])
    ratio = median(one.seconds / other.seconds for one, other in zip(theirs, ours, strict=True))
    rates = [median(each.tokens / each.seconds for each in side) for side in (ours, theirs)]
    cpu = [median(1000 * each.cpu / each.tokens for each in side) for side in (ours, theirs)]
    text = f"{ratio:.2f} × ({rates[0]:.0f} and {rates[1]:.0f} tokens/s, medians of {len(ours)} replies)"
    screen = median(1000 * each.screen / each.tokens for each in ours)
    costs = f"{cpu[0]:.1f} and {cpu[1]:.1f} ms a token; drawing {screen:.2f} ms a token"
    return [Finding("tokens/s in the app : `generate`", text, "≥ 0.9 ×", ratio >= 0.9, costs)]


def _answer(app: App) -> Speed:
    """Ask in a new conversation."""
    if app.kinds("message"):
        app.say("/new")
    app.settle(3)  # also for what is tidied up after a reply
    before, cpu, screen = app.session(), app.cpu(), app.screen_cpu()
    app.say(QUESTION)
    app.wait_until(lambda: app.session() != before and len(app.kinds("end")) == 1)
    stats: dict[str, float] = app.kinds("end")[0]["stats"]
    return Speed(int(stats["tokens"]), stats["seconds"], app.cpu() - cpu, app.screen_cpu() - screen)


@contextmanager
def generator(folder: Path) -> Iterator[Callable[[], Speed]]:
    """A process that answers the question when it is asked."""
    command = [sys.executable, "-c", _GENERATE, str(folder), PERSONA, str(STRENGTH), QUESTION]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **QUIET},
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def answer() -> Speed:
            process.stdin.write("\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            return Speed(**json.loads(process.stdout.readline()))  # type: ignore[union-attr]

        yield answer
        process.stdin.close()


# All of it --------------------------------------------------------------------------------------------------

MEASURES: dict[str, Callable[[Effort], list[Finding]]] = {
    "start": start,
    "resting": keys_resting,
    "keys": keys_writing,
    "extracting": keys_extracting,
    "idle": idle,
    "stop": stop,
    "quit": quitting,
    "speed": speed,
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    rows = []
    for name in options.only:
        for finding in MEASURES[name](QUICK if options.quick else Effort()):
            rows.append(finding.row())
            print(f"  {name}: {finding.found}", file=sys.stderr, flush=True)
    text = f"Measured on {machine()}.\n\n{table(HEADER, rows)}\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
