"""Many clients at once, some of whom hang up; what each should have heard is known beforehand."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

import httpx

VOICES = ("tiny", "tiny+sage:0.5", "tiny+trickster:0.3", "tiny+sage:0.5+explorer:0.5")
CHAT = "/v1/chat/completions"


@dataclass
class Crowd:
    """What a crowd has heard.

    Attributes:
        answered: requests that were answered as they should be.
        left: requests whose client hung up.
        wrong: what was answered otherwise: the status, or the text and what it should have been.
    """

    answered: int = 0
    left: int = 0
    wrong: list[object] = field(default_factory=list)


def request(number: int) -> dict[str, object]:
    """One of a few dozen different requests at temperature 0."""
    text = "Tell me about bread. " * (1 + number % 6) + f"Number {number % 12}."
    return {
        "model": VOICES[number % len(VOICES)],
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 8 + number % 3 * 8,
        "persona_tui": {"plausibility": 0.05 if number % 3 == 0 else 0},
    }


async def alone(url: str, kinds: int) -> list[str]:
    """What each request is answered with by itself."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        return [_said(await client.post(CHAT, json=request(number))) for number in range(kinds)]


def _said(response: httpx.Response) -> str:
    text: str = response.raise_for_status().json()["choices"][0]["message"]["content"]
    return text


async def come(url: str, clients: int, expected: list[str], seconds: float, least: int = 2) -> Crowd:
    """Have clients ask one thing after another, each at least so many times, and for at least so long."""
    crowd, end = Crowd(), time.monotonic() + seconds
    await asyncio.gather(*(_client(url, place, expected, end, least, crowd) for place in range(clients)))
    return crowd


async def _client(url: str, place: int, expected: list[str], end: float, least: int, crowd: Crowd) -> None:
    chance, asked = random.Random(place), 0
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        while asked < least or time.monotonic() < end:
            asked += 1
            number = chance.randrange(len(expected))
            if chance.random() < 0.2:
                await _hang_up(client, number)
                crowd.left += 1
                continue
            response = await client.post(CHAT, json=request(number))
            if response.status_code == 200 and _said(response) == expected[number]:
                crowd.answered += 1
            else:
                crowd.wrong.append((response.status_code, response.text[:200], expected[number]))


async def _hang_up(client: httpx.AsyncClient, number: int) -> None:
    """Ask for a stream, and go away at its first line."""
    async with client.stream("POST", CHAT, json={**request(number), "stream": True}) as reply:
        async for _ in reply.aiter_lines():
            return
