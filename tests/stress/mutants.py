"""Damaged files of every kind, each from a sound one and a random generator."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from safetensors import safe_open
from safetensors.torch import load, save

Mutant = Callable[[bytes, Random], bytes]
Placing = Callable[[Path, Path], None]


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (str(self.sentinel),))


# Bytes ------------------------------------------------------------------------------------------------------


def truncated(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def bit_flipped(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8, 64))):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def head_flipped(data: bytes, random: Random) -> bytes:
    """Most of what is read first, and decides about the rest, stands at the beginning."""
    return bit_flipped(data[:400], random) + data[400:]


def overwritten(data: bytes, random: Random) -> bytes:
    place, length = random.randrange(len(data) + 1), random.randrange(1, 200)
    return data[:place] + random.randbytes(length) + data[place + length :]


def inserted(data: bytes, random: Random) -> bytes:
    place = random.randrange(len(data) + 1)
    return data[:place] + random.randbytes(random.randrange(1, 50)) + data[place:]


def repeated(data: bytes, random: Random) -> bytes:
    return data * 2


def noise(data: bytes, random: Random) -> bytes:
    return random.randbytes(random.randrange(2000))


def zeros(data: bytes, random: Random) -> bytes:
    return bytes(random.randrange(1, 5000))


def not_utf8(data: bytes, random: Random) -> bytes:
    place = random.randrange(len(data) + 1)
    return data[:place] + b"\xff\xfe\xc3" + data[place:]


def deep_json(data: bytes, random: Random) -> bytes:
    opening = random.choice((b"[", b'{"a":', b"- ", b"{? "))
    return opening * random.choice((1_000, 20_000, 200_000))


def constants(data: bytes, random: Random) -> bytes:
    text = random.choice((b"NaN", b"Infinity", b"-1e400", b"null", b"[]", b"{}", b'"x"', b"0", b"1" * 5000))
    digits = [place for place in range(len(data)) if data[place : place + 1].isdigit()]
    place = random.choice(digits) if digits else 0
    return data[:place] + text + data[place + 1 :]


def nothing(data: bytes, random: Random) -> bytes:
    return b""


BYTES: tuple[Mutant, ...] = (
    truncated,
    bit_flipped,
    head_flipped,
    overwritten,
    inserted,
    repeated,
    noise,
    zeros,
    not_utf8,
    deep_json,
    constants,
    nothing,
)

# Vector files -----------------------------------------------------------------------------------------------


def _metadata(data: bytes) -> dict[str, str]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found: dict[str, str] = header["__metadata__"]
    return found


def oversized_header(data: bytes, random: Random) -> bytes:
    length = random.choice((len(data), 2**24, 2**32, 2**63, 2**64 - 1))
    return length.to_bytes(8, "little") + data[8:]


def wrong_shape(data: bytes, random: Random) -> bytes:
    tensors = load(data)
    name = random.choice(sorted(tensors))
    shape = random.choice(((0, 4), (1,), (3, 2, 1), (1, 10_000), (2, 1), (1, 1, 1, 1)))
    return save({**tensors, name: torch.ones(shape)}, _metadata(data))


def wrong_type(data: bytes, random: Random) -> bytes:
    tensors = load(data)
    name = random.choice(sorted(tensors))
    kind = random.choice((torch.int64, torch.bool, torch.uint8, torch.float64, torch.float16))
    return save({**tensors, name: tensors[name].to(kind)}, _metadata(data))


def no_numbers(data: bytes, random: Random) -> bytes:
    tensors = load(data)
    name = random.choice(sorted(tensors))
    changed = tensors[name].float().flatten()
    changed[random.randrange(len(changed))] = random.choice((float("nan"), float("inf"), -float("inf")))
    return save({**tensors, name: changed.view(tensors[name].shape)}, _metadata(data))


def missing_tensor(data: bytes, random: Random) -> bytes:
    tensors = load(data)
    del tensors[random.choice(sorted(tensors))]
    return save(tensors, _metadata(data))


def changed_metadata(data: bytes, random: Random) -> bytes:
    """One value of the JSON, wherever it is, becomes one of another kind."""
    metadata = _metadata(data)
    key = next(iter(metadata))
    content = json.loads(metadata[key])
    holders = [content]
    for holder in holders:
        values = holder.values() if isinstance(holder, dict) else holder
        holders += [value for value in values if isinstance(value, (dict, list)) and value]
    holder = random.choice(holders)
    place = random.choice(sorted(holder)) if isinstance(holder, dict) else random.randrange(len(holder))
    if isinstance(holder, dict) and random.random() < 0.3:
        del holder[place]
    else:
        holder[place] = random.choice((None, -1, 10**30, 0.5, "x", [], {}, [[1]], {"a": []}, True, "\x00"))
    return save(load(data), {**metadata, key: json.dumps(content)})


VECTORS: tuple[Mutant, ...] = (
    oversized_header,
    wrong_shape,
    wrong_type,
    no_numbers,
    missing_tensor,
    changed_metadata,
    changed_metadata,
)


def is_vector_file(path: Path) -> bool:
    """Whether safetensors reads it."""
    try:
        with safe_open(path, "pt"):
            return True
    except Exception:
        return False


# What is not a regular file ---------------------------------------------------------------------------------


def pickled(sentinel: Path) -> bytes:
    """Runs code when it is unpickled."""
    return pickle.dumps(Payload(sentinel), protocol=2)


def torch_pickled(sentinel: Path, scratch: Path) -> bytes:
    """The same in the form in which torch saves files."""
    torch.save(Payload(sentinel), scratch)
    return scratch.read_bytes()


def link_out(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "diary.txt")


def dangling_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "nothing")


def circular_link(path: Path, outside: Path) -> None:
    path.symlink_to(path)


def folder(path: Path, outside: Path) -> None:
    path.mkdir()


def vast(path: Path, outside: Path) -> None:
    """Three gigabytes of nothing; they take no room on the disk."""
    with path.open("wb") as file:
        file.truncate(3 << 30)


def endless(path: Path, outside: Path) -> None:
    path.symlink_to("/dev/zero")


def pipe(path: Path, outside: Path) -> None:
    """Opening it waits for ever, for a writer that never comes."""
    os.mkfifo(path)


PLACES: tuple[Placing, ...] = (link_out, dangling_link, circular_link, folder, vast, endless, pipe)
