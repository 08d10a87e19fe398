"""Many clients at once: each is answered as if it were alone."""

from __future__ import annotations

import asyncio
import resource
import time

import pytest

from persona_tui.project.project import Project
from persona_tui.server.run import Server

from . import crowd
from .conftest import serving


def busy(server: Server) -> bool:
    worker = server.service.worker
    return worker.rows > 0 or worker.waiting > 0


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
    await crowd.come(server.url, 32, expected, 10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = await crowd.come(server.url, 32, expected, 120)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{found.answered} answered, {found.left} left, {len(found.wrong)} wrong; {after - before} KiB more"
    )
    assert found.wrong == [] and found.answered > 32 and found.left > 0
    assert after - before < 64 * 1024, "memory grows"
    await settled(server)


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
