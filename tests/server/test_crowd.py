"""Many clients at once: each is answered as if it were alone."""

from __future__ import annotations

import asyncio
import gc
import re
import time
from pathlib import Path

import pytest

from persona_tui.project.project import Project
from persona_tui.server.run import Server

from . import crowd
from .conftest import serving


def busy(server: Server) -> bool:
    worker = server.service.worker
    return worker.rows > 0 or worker.waiting > 0


def resident() -> int:
    """MiB that this process, the server and its clients, holds when nobody needs any."""
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) // 1024  # type: ignore[index]


async def settled(server: Server) -> None:
    """Wait until nothing is written any more."""
    end = time.monotonic() + 60
    while busy(server):
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_a_few_clients_some_of_whom_hang_up(server: Server) -> None:
    expected = await crowd.alone(server.url, 6)
    found = await crowd.come(server.url, clients=8, expected=expected, seconds=0, least=3)
    assert found.wrong == [] and found.answered + found.left == 24 and found.left > 0
    await settled(server)


@pytest.mark.stress
@pytest.mark.timeout(1800)
async def test_32_clients_for_two_minutes(server: Server) -> None:
    expected = await crowd.alone(server.url, 24)
    held = []
    for _ in range(4):
        found = await crowd.come(server.url, 32, expected, 30)
        await settled(server)
        held.append(resident())
        print(f"{found.answered} answered, {found.left} left, {len(found.wrong)} wrong; {held[-1]} MiB held")
        assert found.wrong == [] and found.answered > 32 and found.left > 0
    # The first minute fills caches and pools.
    assert held[3] - held[1] < 16, "memory grows"


@pytest.mark.stress
@pytest.mark.timeout(1800)
async def test_in_16_bits_everybody_is_answered_and_the_share_of_equal_replies_is_told(
    project: Project,
) -> None:
    other = Project.open(project.workspace.root, dtype="bfloat16")
    with serving(other) as server:
        expected = await crowd.alone(server.url, 24)
        found = await crowd.come(server.url, 32, expected, 30)
        await settled(server)
    different = [each for each in found.wrong if isinstance(each, tuple) and each[0] == 200]
    total = found.answered + len(different)
    print(f"bfloat16: {found.answered} of {total} equal ({found.answered / total:.3f}), {found.left} left")
    assert len(different) == len(found.wrong) and found.answered > 0
