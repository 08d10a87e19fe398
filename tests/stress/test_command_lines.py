"""Random command lines: every command, with values and files that nobody means."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.core.test_documents import BOMB
from tests.stress.conftest import Say, no_hang, problem

# FILE, OUT, NAME, TEXT and NUMBER stand for something odd, drawn anew each time.
LINES = """\
list
list --json
info NAME
info NAME --json
load NAME
generate TEXT --persona NAME --strength NUMBER
generate TEXT --blend NAME:NUMBER,sage:NUMBER
generate TEXT --max-new-tokens NUMBER --temperature NUMBER --seed NUMBER
generate TEXT --plausibility NUMBER --system TEXT --json
compare TEXT --a persona=NAME,strength=NUMBER --b TEXT
sweep TEXT --persona NAME --strengths NUMBER,NUMBER
create NAME --prompts FILE --no-calibrate
create NAME -d TEXT --no-calibrate --questions NUMBER
calibrate NAME
delete NAME
export NAME -f gguf -o OUT --strength NUMBER
import FILE --name NAME --layer NUMBER
sessions show TEXT
sessions search TEXT
sessions rename TEXT TEXT
sessions export TEXT -o OUT
replay TEXT
trait score FILE
trait score TEXT --trait NAME
trait check FILE --policy TEXT
trait check TEXT --policy FILE
trait curate FILE --rules TEXT -o OUT
trait extract FILE
monitor check TEXT --monitor NAME
monitor fit NAME --file FILE
monitor evaluate --file FILE --csv OUT
dataset validate FILE
dataset import FILE
config set TEXT TEXT
config set generation.temperature NUMBER
config set steering.capping_layers TEXT
chat --resume TEXT
chat --strength NUMBER
model info TEXT""".splitlines()

NUMBERS = ["0", "-1", "1", "0.3", "nan", "inf", "-inf", "1e38", "1e-46", "1e999", "9" * 20, "0x10", "1_000"]
NUMBERS += ["\u0661", "\u00bd", "x", "", "--"]
NAMES = [
    "sage",
    "fool",
    "Sage",
    "nobody",
    "CON",
    "../x",
    "a" * 300,
    "é",
    "",
    "-x",
    "trait:x",
    "monitor:default",
]
TEXTS = [
    "hi",
    "",
    " ",
    "-",
    "--",
    "a>1",
    "a>nan",
    "generation.seed",
    "x" * 5000,
    "\x1b[2J\x9b",
    "<|im_end|>",
    "\u202e\u0301🙂",
    "{" * 200,
    "last",
    "/etc/passwd",
    "~",
    "[9, 9]",
    "!!bool x",
    "null",
]
CONTENTS = [
    b"",
    b"\n\n",
    b"\0\0\0",
    b"\xff\xfe\x00\xd8",
    b"\xef\xbb\xbf{}",
    b"[" * 5000,
    BOMB.encode(),
    b'{"prompt": "\\ud83d", "query": "\\ud83d", "system_prompt": "\\ud83d"}\n',
    b'{"messages": 5}\n{"messages": [{"role": 5, "content": {}}]}\n',
    b'{"query": "x", "label": 7}\n',
    b'user,assistant\n"a\n',
    b"User: a\nAssistant: b\n",
    b"GGUF\x00\x00\x00\x00",
    b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ",
    b"traits: {a: {min: .nan}}\n",
    b"!!float ''\n",
    b"\x80\x04K\x01.",
]
ENDINGS = ["", ".jsonl", ".json", ".yaml", ".csv", ".txt", ".safetensors", ".gguf", ".pt"]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """What a FILE may be: contents with each ending, a folder, a pipe, a device, and nothing."""
    folder = tmp_path / "files"
    folder.mkdir()
    found = [folder, folder / "missing.jsonl", Path("/dev/zero"), Path("/dev/null"), folder / "pipe.jsonl"]
    os.mkfifo(folder / "pipe.jsonl")
    for number, content in enumerate(CONTENTS):
        for ending in ENDINGS:
            path = folder / f"{number}{ending}"
            path.write_bytes(content)
            found.append(path)
    return found


def drawn(random: random.Random, files: list[Path], outputs: Path) -> list[str]:
    """A command line."""
    words = []
    for word in random.choice(LINES).split():
        for sign, choices in (("NUMBER", NUMBERS), ("NAME", NAMES), ("TEXT", TEXTS)):
            while sign in word:
                word = word.replace(sign, random.choice(choices), 1)
        if word == "FILE":
            word = str(random.choice(files))
        words.append(str(outputs / random.choice("ab")) if word == "OUT" else word)
    return words


def attacked(cli: Cli, files: list[Path], outputs: Path, seed: int, count: int) -> list[str]:
    """What went wrong, of some command lines."""
    source = random.Random(seed)
    found = []
    for _ in range(count):
        words = drawn(source, files, outputs)
        with no_hang(words):
            result = cli(*words, stdin="hi\n/strength x\n\n/quit\n")
        if told := problem(result, words):
            found.append(told)
    return found


@pytest.mark.slow
def test_random_command_lines(cli: Cli, files: list[Path], tmp_path: Path) -> None:
    assert attacked(cli, files, tmp_path, seed=1, count=60) == []


@pytest.mark.stress
def test_many_random_command_lines(cli: Cli, files: list[Path], tmp_path: Path, say: Say) -> None:
    assert attacked(cli, files, tmp_path, seed=2, count=1500) == []
    say("1500 random command lines: each did it, or said why not")
