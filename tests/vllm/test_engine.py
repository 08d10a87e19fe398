"""Inside vLLM the model does and says what it does and says in our own engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from persona_tui.core.config import Settings
from persona_tui.core.errors import GenerationError
from persona_tui.core.sections import VllmSettings
from persona_tui.model import Cap, Interventions, ModelWrapper, Request, Sampling, Watch
from persona_tui.model.pool import Pool
from persona_tui.steering.engine import SteeringEngine
from persona_tui.vectors.manager import PersonaManager
from persona_tui.vllm import scores
from persona_tui.vllm.driver import LocalDriver
from persona_tui.vllm.engine import VllmModel
from persona_tui.vllm.orders import Order
from persona_tui.vllm.passes import PassRow
from persona_tui.vllm.wire import Errand
from persona_tui.vllm.worker import WorkerSlots

from .conftest import LAYERS, NAME, WIDTH, drawn

GREEDY = Sampling(max_new_tokens=12, temperature=0)
QUESTIONS = ("What is bread?", "Who are you, and why?", "Hi", "Tell me of the sea. " * 5)
ALL = tuple(range(LAYERS))


@pytest.fixture(scope="module", params=[True, False], ids=["eager", "compiled"])
def inside(request: pytest.FixtureRequest, model_folder: Path) -> Iterator[VllmModel]:
    settings = VllmSettings(requests=16, context=256, eager=request.param)
    model = VllmModel.start(str(model_folder), dtype="float32", settings=settings)
    yield model
    model.driver.shut_down()


@pytest.fixture(scope="session")
def ours(model_folder: Path) -> ModelWrapper:
    return ModelWrapper.load(str(model_folder), device="cpu", dtype="float32")


def asked(question: str, seed: int = 0) -> Request:
    return Request([{"role": "user", "content": question}], seed)


def ways(workspace: Path, model: ModelWrapper, inside: VllmModel | None = None) -> dict[str, Interventions]:
    """Mixes; those that the model inside vLLM can speak with."""
    from persona_tui.core.mix import Mix

    settings = Settings.model_validate({"steering": {"capping_layers": [2, 3]}})
    engine = SteeringEngine(model, PersonaManager(workspace / "vectors" / NAME), settings)
    mixes = {
        "plain": Mix(capping=False),
        "steered": Mix({"sage": 1.0}, 0.5, capping=False),
        "floored": Mix({}, 0.0, capping=True, percentile=90),
        "both": Mix({"sage": 1.0, "fool": -1.0}, 0.4, capping=True, percentile=60),
        "guided": Mix({"sage": 1.0}, 0.8, capping=True, plausibility=0.05),
    }
    guides = inside is None or inside.guides
    return {name: engine.interventions(mix) for name, mix in mixes.items() if guides or not mix.plausibility}


def rows_of(way: Interventions, count: int) -> Interventions:
    return Interventions.by_row([way] * count)


def near(found: Tensor | None, wanted: Tensor | None) -> None:
    assert found is not None and wanted is not None and found.shape == wanted.shape
    assert ((found - wanted).norm(dim=-1) <= 1e-5 * wanted.norm(dim=-1)).all()


def test_replies_and_their_means(inside: VllmModel, ours: ModelWrapper, workspace: Path) -> None:
    requests = [asked(each) for each in QUESTIONS]
    for name, way in ways(workspace, ours, inside).items():
        rows = rows_of(way, len(requests))
        there = inside.generate(requests, GREEDY, rows, ALL)
        here = ours.generate(requests, GREEDY, rows, ALL)
        for one, other in zip(there, here, strict=True):
            assert (one.token_ids, one.finish, one.text) == (other.token_ids, other.finish, other.text), name
            assert one.activations is not None and other.activations is not None
            assert one.activations.n_tokens == other.activations.n_tokens
            for recipe in ("response", "prompt_last"):
                near(getattr(one.activations, recipe), getattr(other.activations, recipe))


def test_replies_are_added_up_where_they_were_written(
    inside: VllmModel, ours: ModelWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By kind of reply, to the last digit what they come to one by one; also one that is cut at the text with
    which a base model begins the next turn."""
    requests = [asked(each) for each in QUESTIONS]
    plain = inside.generate(requests, GREEDY, capture_layers=ALL)
    for model in (inside, ours):
        monkeypatch.setattr(model, "_stops", (plain[0].text[4:7],))
    short = lambda text: text < plain[2].text  # noqa: E731
    there = inside.pooled(requests, GREEDY, ALL, short, kept={1})
    one_by_one = inside.generate(requests, GREEDY, capture_layers=ALL)
    assert [each.text for each in there.replies] == [each.text for each in one_by_one]
    assert len(there.replies[0].token_ids) < len(plain[0].token_ids)
    assert [each.activations is not None for each in there.replies] == [False, True, False, False]
    wanted = {True: Pool(ALL), False: Pool(ALL)}
    for each in one_by_one:
        assert each.activations is not None
        wanted[short(each.text)].add(each.activations)
    here = ours.pooled(requests, GREEDY, ALL, short)
    for kind, pool in there.pools.items():
        own, other = wanted[kind], here.pools[kind]
        assert pool.count == own.count == other.count > 0 and pool.tokens == own.tokens == other.tokens
        assert pool.totals is not None and own.totals is not None and other.totals is not None
        if isinstance(inside.driver, LocalDriver):  # a server divides them into passes as they come
            assert torch.equal(pool.totals, own.totals)
        near(pool.totals.double(), own.totals.double())
        near(pool.totals.double(), other.totals.double())


def test_thoughts_are_no_part_of_a_reply(
    inside: VllmModel, ours: ModelWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies between two tokens is left out; where they are is known only once they are chosen."""
    requests = [asked(each) for each in QUESTIONS]
    ids = inside.generate(requests, GREEDY)[0].token_ids
    tags = ids[2], next(each for each in ids[5:] if each != ids[2])
    for model in (inside, ours):
        monkeypatch.setattr(model, "_thoughts", tags)
    there, here = (model.generate(requests, GREEDY, capture_layers=ALL) for model in (inside, ours))
    for one, other in zip(there, here, strict=True):
        assert one.token_ids == other.token_ids
        assert one.activations is not None and other.activations is not None
        assert one.activations.n_tokens == other.activations.n_tokens
        near(one.activations.response, other.activations.response)
    assert there[0].activations is not None and there[0].activations.n_tokens < len(ids) - 3


def test_what_is_foreseen_changes_no_answer(inside: VllmModel, workspace: Path, ours: ModelWrapper) -> None:
    """Begun before it is asked for, or not asked for at all."""
    warm = Sampling(max_new_tokens=12, temperature=1.0)
    requests = [asked(f"{each} And {at}?", at) for at in range(5) for each in QUESTIONS]
    rows = rows_of(ways(workspace, ours)["steered"], 10)
    plain = [each.token_ids for each in inside.generate(requests, warm)]
    steered = [each.token_ids for each in inside.generate(requests[:10], warm, rows)]
    wanted = inside.pooled(requests[10:], warm, ALL).pools[True]
    for _ in range(inside.driver.about.places // 8):  # nothing stays behind
        inside.foresee(requests[:10], warm, lambda: rows)
        inside.foresee(requests[10:], warm, captured=True)
        found = inside.generate(requests[:10], warm, rows)
        assert [each.token_ids for each in found] == steered
        pooled = inside.pooled(requests[10:], warm, ALL)
        assert [each.token_ids for each in pooled.replies] == plain[10:]
        near(pooled.pools[True].totals.double(), wanted.totals.double())  # type: ignore[union-attr]
        inside.foresee(requests[10:], warm, captured=True)
        assert [each.token_ids for each in inside.generate(requests[10:], warm)] == plain[10:]
        inside.foresee(())
    assert next(inside.stream([asked("Hi")], GREEDY)).token_id >= 0


def test_floors_on_ever_other_axes(inside: VllmModel, ours: ModelWrapper) -> None:
    """One after the other there may be any number of axes; at a time, too many are refused."""
    capped = [Interventions({}, {2: Cap(drawn(WIDTH, seed=seed) / 8, 2.0)}) for seed in range(40)]
    for at in range(0, 40, 5):
        rows, requests = Interventions.by_row(capped[at : at + 5]), [asked("What is bread?")] * 5
        there, here = inside.generate(requests, GREEDY, rows), ours.generate(requests, GREEDY, rows)
        assert [each.token_ids for each in there] == [each.token_ids for each in here]
    with pytest.raises(GenerationError, match="axes at a time"):
        inside.generate([asked("Hi")] * 16, GREEDY, Interventions.by_row(capped[:16]))


def test_likelihoods(inside: VllmModel, ours: ModelWrapper, workspace: Path) -> None:
    pairs = [(asked(each).messages, f"{each} It depends.") for each in QUESTIONS]
    for way in ways(workspace, ours, inside).values():
        rows = rows_of(way, len(pairs))
        there, here = inside.score(pairs, rows), ours.score(pairs, rows)
        for one, other in zip(there, here, strict=True):
            assert one.n_tokens == other.n_tokens
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_what_texts_begin_with_is_read_once(
    inside: VllmModel, ours: ModelWrapper, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what counts of them is read always, though all of it was written and read before."""
    monkeypatch.setattr(scores, "_LOGITS_ON_CPU", 0)  # in small pieces
    prompt = asked("Tell me of the sea. " * 4).messages
    texts = [[*prompt, {"role": "assistant", "content": f"{each} It depends."}] for each in QUESTIONS]
    pairs = [(each[:-1], each[-1]["content"]) for each in texts]
    place, tokens = WorkerSlots.place, []

    def counted(slots: WorkerSlots, rows: Sequence[PassRow]) -> None:
        tokens.append(sum(row.length for row in rows))
        place(slots, rows)

    monkeypatch.setattr(WorkerSlots, "place", counted)
    for name, way in ways(workspace, ours, inside).items():
        rows = rows_of(way, len(pairs))
        wanted, known = ours.score(pairs, rows), ours.read(texts, ALL, rows)
        written = ours.count_tokens(prompt)
        for _ in range(2):
            tokens.clear()
            for one, other in zip(inside.score(pairs, rows), wanted, strict=True):
                assert one.n_tokens == other.n_tokens
                assert one.logprob == pytest.approx(other.logprob, abs=1e-4), name
            for one_read, other_read in zip(inside.read(texts, ALL, rows), known, strict=True):
                assert one_read.n_tokens == other_read.n_tokens
                near(one_read.response, other_read.response)
                near(one_read.prompt_last, other_read.prompt_last)
        replies = sum(each.n_tokens for each in wanted)
        # Of a prompt, what does not fill a piece of the cache; it has pieces of 32 tokens.
        assert (
            2 * replies
            < sum(tokens)
            <= 2 * (replies + 33 * len(pairs))
            < 2 * (replies + written * len(pairs))
        )


def test_a_stream_tells_the_same(inside: VllmModel, ours: ModelWrapper, workspace: Path) -> None:
    axes = {"a": {1: drawn(WIDTH, seed=3), 2: drawn(WIDTH, seed=4)}, "b": {3: drawn(WIDTH, seed=5)}}
    request = replace(asked("What is bread?"), likeliest=3)
    rows = Interventions.by_row(list(ways(workspace, ours, inside).values()))
    count = len(ways(workspace, ours, inside))
    there = list(inside.stream([request] * count, GREEDY, rows, axes))
    here = list(ours.stream([request] * count, GREEDY, rows, axes))
    order = lambda event: (event.row, event.index)  # noqa: E731
    for one, other in zip(sorted(there, key=order), sorted(here, key=order), strict=True):
        assert (one.row, one.token_id, one.text, one.finish) == (
            other.row,
            other.token_id,
            other.text,
            other.finish,
        )
        assert (one.nats is None) == (other.nats is None)
        assert one.nats is None or one.nats == pytest.approx(other.nats, abs=1e-4)
        for name, apart in (("logprob", 1e-4), ("entropy", 1e-4), ("capped", 1e-4), ("projections", 1e-3)):
            # Projections onto vectors of length 8 are in the tens.
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-4, abs=apart), name
        assert [each[0] for each in one.likeliest] == [each[0] for each in other.likeliest]


def test_text_is_read_in_the_middle_of_a_stream(
    inside: VllmModel, ours: ModelWrapper, workspace: Path
) -> None:
    """As a guard does with a message in disguise; nothing of the stream is lost."""
    axes = {"a": {1: drawn(WIDTH, seed=3), 2: drawn(WIDTH, seed=4)}}
    known = list(ways(workspace, ours, inside).values())
    requests, rows = [asked("What is bread?")] * len(known), Interventions.by_row(known)
    stream = inside.stream(requests, GREEDY, rows, axes)
    there = [next(stream) for _ in range(3)]
    read = inside.read_messages([asked("Who are you?").messages], ALL)[0]
    pair = (asked("Hi").messages, "It depends.")
    scored = inside.score([pair])[0]
    there += list(stream)
    near(read.mean, ours.read_messages([asked("Who are you?").messages], ALL)[0].mean)
    assert scored.logprob == pytest.approx(ours.score([pair])[0].logprob, abs=1e-4)
    here = list(ours.stream(requests, GREEDY, rows, axes))
    order = lambda event: (event.row, event.index)  # noqa: E731
    for one, other in zip(sorted(there, key=order), sorted(here, key=order), strict=True):
        assert (one.row, one.token_id, one.finish) == (other.row, other.token_id, other.finish)
        assert one.projections == pytest.approx(other.projections, rel=1e-4, abs=1e-3)
        assert one.entropy == pytest.approx(other.entropy, abs=1e-4)
        assert (one.nats is None) == (other.nats is None)
        assert one.nats is None or one.nats == pytest.approx(other.nats, abs=1e-4)


def test_a_mix_that_changes_while_it_speaks(inside: VllmModel, ours: ModelWrapper, workspace: Path) -> None:
    known = ways(workspace, ours, inside)

    def told(model: ModelWrapper) -> list[tuple[int, float | None]]:
        calls = iter(
            [known["plain"], None, None, known["steered"], None, known.get("guided"), None, known["floored"]]
        )
        events = model.stream([asked("What is bread?")], GREEDY, lambda: next(calls, None))
        return [(each.token_id, each.nats) for each in events]

    there, here = told(inside), told(ours)
    assert [each[0] for each in there] == [each[0] for each in here]
    assert [each[1] for each in there] == pytest.approx([each[1] for each in here], abs=1e-4)


def test_a_watch_reads_in_the_same_passes(inside: VllmModel, ours: ModelWrapper) -> None:
    watch = Watch(ALL, (1, 2), after=3, every=2)
    requests = [asked(each) for each in QUESTIONS[:2]]
    there = [each for each in inside.stream(requests, GREEDY, watch=watch) if each.reading]
    here = [each for each in ours.stream(requests, GREEDY, watch=watch) if each.reading]
    order = lambda event: (event.row, event.token_id >= 0, event.index)  # noqa: E731
    for one, other in zip(sorted(there, key=order), sorted(here, key=order), strict=True):
        assert one.reading is not None and other.reading is not None
        assert (one.reading.layers, one.reading.n_tokens) == (other.reading.layers, other.reading.n_tokens)
        near(one.reading.mean, other.reading.mean)
        if other.reading.last is not None:
            near(one.reading.last, other.reading.last)
            near(one.reading.parts, other.reading.parts)


def test_what_is_read_of_text(inside: VllmModel, ours: ModelWrapper) -> None:
    texts = [
        "The sea was calm.",
        asked("What is bread?").messages,
        [*asked("Hi").messages, {"role": "assistant", "content": "Good day to you."}],
    ]
    for one, other in zip(inside.read(texts, (0, 3)), ours.read(texts, (0, 3)), strict=True):
        assert (one.layers, one.n_tokens) == (other.layers, other.n_tokens)
        near(one.response, other.response)
        near(one.prompt_last, other.prompt_last)
    conversations = [asked(f"{'Thank you so much. ' * 6}What is bread?").messages, asked("Hi").messages]
    for read, wanted in zip(
        inside.read_messages(conversations, ALL), ours.read_messages(conversations, ALL), strict=True
    ):
        near(read.mean, wanted.mean)
        near(read.last, wanted.last)
        near(read.parts, wanted.parts)


def test_a_reply_is_read_again(inside: VllmModel, ours: ModelWrapper, workspace: Path) -> None:
    axes = {"a": {1: drawn(WIDTH, seed=3), 2: drawn(WIDTH, seed=4)}}
    way = {0: ways(workspace, ours, inside)["both"]}
    messages = asked("What is bread?").messages
    there = inside.reread_reply(messages, "It is flour.", axes, way)
    here = ours.reread_reply(messages, "It is flour.", axes, way)
    for one, other in zip(there, here, strict=True):
        assert (one.token_id, one.text) == (other.token_id, other.text)
        assert one.projections == pytest.approx(other.projections, rel=1e-4, abs=1e-4)
        assert one.capped == pytest.approx(other.capped, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("warm", [Sampling(80, 1.0, 0.9), Sampling(12, 0.7, 1.0)], ids=["top-p", "all"])
def test_the_same_seed_has_the_same_reply(inside: VllmModel, ours: ModelWrapper, warm: Sampling) -> None:
    """Whoever else is answered, and on either engine; also where some have other samplings."""
    requests = [asked("What is bread?", 2**64 + seed) for seed in range(20)]  # more than run at a time
    requests[3:5] = [
        replace(requests[3], sampling=GREEDY),
        replace(requests[4], sampling=Sampling(9, 0.5, 0.5)),
    ]
    together = [each.token_ids for each in inside.generate(requests, warm)]
    assert [inside.generate([each], warm)[0].token_ids for each in requests[:6]] == together[:6]
    assert [each.token_ids for each in ours.generate(requests, warm)] == together
    assert len({tuple(each) for each in together}) > 10


def test_who_gives_up_leaves_nothing_behind(inside: VllmModel) -> None:
    steps = iter(range(3))

    def give_up() -> None:
        if next(steps, None) is None:
            raise KeyboardInterrupt

    requests = [asked(each) for each in QUESTIONS]
    for _ in range(inside.driver.about.places // 4):
        steps = iter(range(3))
        with pytest.raises(KeyboardInterrupt):
            inside.generate(requests, GREEDY, capture_layers=ALL, on_step=give_up)
        stream = inside.stream(requests, GREEDY, watch=Watch(ALL))
        next(stream)
        stream.close()
    stop = threading.Event()
    stop.set()
    assert [each.finish for each in inside.generate(requests, GREEDY, stop=stop)] == ["cancelled"] * 4
    assert inside.generate(requests, GREEDY, capture_layers=ALL)[0].activations is not None


def test_a_request_that_is_named_twice_loses_nothing_of_its_tokens(inside: VllmModel) -> None:
    """A server names it so when two of its tokens have come since it was asked last."""
    name = inside.driver.new_name()
    rows: list[list[float]] = []
    for _ in inside.driver.run([Order([5, 6, 7], Errand(name, told=True), tokens=6)]):
        rows += inside.driver.traced([name, name])[name]
    inside.driver.take([name])
    assert len(rows) == 6


def test_what_cannot_be_done_is_one_line(inside: VllmModel) -> None:
    with pytest.raises(GenerationError, match="context holds"):
        inside.generate([asked("What is bread? " * 40)], GREEDY)
    stream = inside.stream([asked("Hi")], GREEDY)
    next(stream)
    with pytest.raises(GenerationError, match="middle of another reply"):
        next(inside.stream([asked("Hi")], GREEDY))
    assert [each.finish for each in stream][-1] in ("stop", "length")
    with pytest.raises(GenerationError, match="compiles by itself"):
        inside.compile()
    with pytest.raises(GenerationError, match="layer 9"):
        inside.generate([asked("Hi")], GREEDY, Interventions({9: torch.ones(WIDTH)}))
    with pytest.raises(GenerationError, match=r"shape \[32\]"):
        inside.generate([asked("Hi")], GREEDY, Interventions({1: torch.ones(32)}))
