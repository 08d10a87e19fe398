"""What steering, capping and tracing cost inside vLLM, and what it saves in an extraction.

    python benchmarks/inside_vllm.py [--model starter | --shape 7b] [--rows 1 16 64] [--tokens 64] [--eager]
        [--bare] [--check] [--extraction] [--create]
    python benchmarks/inside_vllm.py --op [--shape 7b] [--device cuda]
    python benchmarks/inside_vllm.py --slots 17 257 1025 4097 [--shape 7b]

1. Tokens per second of the same requests plain, steered, steered and capped, and with means summed up;
   then token by token, without and with a trace. In turns; the fastest of several rounds, and its ratio to
   the first line's. Random vectors at 30-60% of the layers, small enough to change little.
2. With --extraction, instead: the replies of a persona, added up as `create` does, on transformers, by vLLM
   itself without any of ours, and inside vLLM with ours, in turns.
   With --create, instead: a whole `create` by both engines, part by part, calibrated as vLLM can: without
   fitting the vectors. --replies and --tokens are those of the extraction; the calibration is the usual one.
3. With --check: how far log-probabilities of the same replies are from those of transformers.
4. With --bare: the same requests, plain only, with the model's blocks left as they are.
5. The memory of slots: computed.
6. With --op, without vLLM: what the op takes in one pass over all layers, at the starter model's shape or
   another: processor time, or on a GPU the time of a captured graph; the fastest of 200 passes.

7. With --slots, without vLLM: what so many slots take of the memory of a process, before any is used and with
   vectors at 30% of the layers in each.

--shape has random weights made, at Qwen2.5's shapes, in a folder that is deleted afterwards.

vLLM has to be installed (`make test-vllm`); OMP_NUM_THREADS says how many cores are used.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from measuring import REPOSITORY, SHAPES, Cost, make_model, table, take_turns

if TYPE_CHECKING:
    from torch import Tensor

    from persona_tui.model import Interventions, ModelWrapper, Request, Sampling
    from persona_tui.vectors.persona import PersonaVector
    from persona_tui.vllm.engine import VllmModel

MODELS = {"7B (28 x 3584)": (28, 3584), "70B (80 x 8192)": (80, 8192)}


def asked(rows: int) -> list[Request]:
    """Short questions, each with a seed of its own."""
    from persona_tui.model import Request

    topics = ("bread", "courage", "a broken chair", "the sea", "travel", "old friends", "rain", "a good map")
    return [
        Request([{"role": "user", "content": f"Tell me about {topics[at % len(topics)]}."}], at)
        for at in range(rows)
    ]


def ways(model: ModelWrapper, size: float = 0.02) -> dict[str, Interventions]:
    """Nothing; vectors of a size; the same with floors."""
    import torch

    from persona_tui.model import Cap, Interventions

    drawn = torch.Generator().manual_seed(0)
    depth, width = model.n_layers, model.hidden_size
    steering = {
        layer: size * torch.nn.functional.normalize(torch.randn(width, generator=drawn), dim=0)
        for layer in range(round(0.3 * depth), round(0.6 * depth))
    }
    caps = {
        layer: Cap(torch.nn.functional.normalize(torch.randn(width, generator=drawn), dim=0), -1e3)
        for layer in range(round(0.6 * depth), round(0.85 * depth))
    }
    return {
        "plain": Interventions(),
        "steered": Interventions(steering),
        "capped": Interventions(steering, caps),
    }


def compared(
    sides: Mapping[str, Callable[[], float]], repetitions: int, warm: bool = False
) -> list[tuple[str, ...]]:
    """Tokens per second by side, the fastest of several rounds, and its speed over the first side's; all are
    run once before, unless they are warm.
    """
    for side in () if warm else sides.values():
        side()
    costs = {
        name: Cost(min(each.wall for each in own), min(each.cpu for each in own))
        for name, own in take_turns(sides, repetitions).items()
    }
    first = next(iter(costs.values()))
    return [
        (name, f"{1 / own.wall:.1f}", f"{first.wall / own.wall:.3f}", f"{first.cpu / own.cpu:.3f}")
        for name, own in costs.items()
    ]


HEADER = ("rows", "what", "tokens/s", "over the first, by the clock", "by processor time")


def costs(model: VllmModel, rows: Sequence[int], sampling: Sampling, repetitions: int) -> None:
    """Print what it costs to do something to tokens."""
    lines = []
    for count in rows:
        for sides in sides_of(model, asked(count), sampling):
            lines += [(count, *line) for line in compared(sides, repetitions)]
        print(table(HEADER, lines), flush=True)
        lines = []


def sides_of(
    model: VllmModel, requests: list[Request], sampling: Sampling
) -> tuple[dict[str, Callable[[], float]], dict[str, Callable[[], float]]]:
    """The same requests, plain and otherwise: written in one piece, and token by token. Each side returns how
    many tokens were written."""
    known = ways(model)
    axes = {"a": known["steered"].steering}

    def written(way: Interventions) -> float:
        return sum(len(each.token_ids) for each in model.generate(requests, sampling, way))

    def streamed(traced: Mapping[str, Mapping[int, Tensor]]) -> float:
        return sum(1 for _ in model.stream(requests, sampling, known["capped"], traced))

    def summed() -> float:
        found = model.generate(requests, sampling, known["steered"], range(model.n_layers))
        return sum(len(each.token_ids) for each in found)

    sides: dict[str, Callable[[], float]] = {name: partial(written, way) for name, way in known.items()}
    streams = {"streamed": partial(streamed, {}), "streamed and traced": partial(streamed, axes)}
    return {**sides, "steered and summed up": summed}, streams


def plain_of(model: VllmModel, rows: Sequence[int], sampling: Sampling, repetitions: int) -> None:
    """Print how fast plain requests are written."""
    for count in rows:
        sides = {"plain, blocks as they are": sides_of(model, asked(count), sampling)[0]["plain"]}
        print(table(HEADER, [(count, *line) for line in compared(sides, repetitions)]), flush=True)


def check(model: VllmModel, other: ModelWrapper) -> None:
    """Print how far the two engines are apart: log-probabilities of a reply, and means of it."""
    requests = asked(8)
    reply = "It is a long story, and I like to tell it: once there was little to eat, and much to do. "
    pairs = [(request.messages, reply * 3) for request in requests]
    lines = []
    wanted = [each.logprob for each in other.score(pairs, ways(model)["plain"])]
    for name, way in ways(model, size=0.5).items():
        there, here = model.score(pairs, way), other.score(pairs, way)
        apart = [abs(one.logprob - two.logprob) for one, two in zip(there, here, strict=True)]
        moved = [abs(one.logprob - plain) for one, plain in zip(here, wanted, strict=True)]
        lines.append((name, f"{sum(apart) / 8:.5f}", f"{max(apart):.5f}", f"{sum(moved) / 8:.3f}"))
    print(table(("log-probability per token", "apart, mean", "most", "what it changes"), lines), flush=True)
    talks = [[*messages, {"role": "assistant", "content": reply}] for messages, reply in pairs]
    layers = range(model.n_layers)
    cosines = [
        float(cosine(one.response, two.response).min())
        for one, two in zip(model.read(talks, layers), other.read(talks, layers), strict=True)
    ]
    print(f"means of the same replies: cosine {min(cosines):.6f} and more, at every layer\n", flush=True)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """By layer, how alike two stacks are."""
    import torch

    return torch.nn.functional.cosine_similarity(one.float().cpu(), other.float().cpu(), dim=-1)


def extraction(model: VllmModel, other: ModelWrapper, options: argparse.Namespace) -> None:
    """Print what an extraction gains: replies of personas, added up as `create` and `init` add them up.

    The same seeds have the same replies on either engine. vLLM's cache is emptied before each round: it would
    have read all prompts before.
    """
    from persona_tui.core.config import Settings
    from persona_tui.core.workspace import Workspace
    from persona_tui.datasets.records import read_archetype, read_questions
    from persona_tui.extraction.runner import BatchRunner, persona_requests

    given = {"max_new_tokens": options.tokens, "batch_size": options.batch}
    settings = Settings.model_validate({"extraction": given})
    workspace = Workspace.find(REPOSITORY)
    prompts = [each.system_prompt for each in read_archetype(workspace, "sage")]
    questions = read_questions(workspace)
    requests = persona_requests(prompts, questions, -(-options.replies // len(prompts)), 0, "persona")
    read = sum(other.count_tokens(each.messages) for each in requests)
    engine = model.driver._engine  # type: ignore[attr-defined]

    def extracted(each: ModelWrapper) -> float:
        engine.reset_prefix_cache()
        return BatchRunner(each, settings).run(requests).tokens

    def by_itself() -> float:
        engine.reset_prefix_cache()
        return written_by_vllm(model, requests, BatchRunner(model, settings).sampling)

    def in_turn() -> float:
        with mock.patch.object(model, "foresee", return_value=False):
            return extracted(model)

    sides = {
        "transformers": partial(extracted, other),
        "vLLM by itself, without means": by_itself,
        "vLLM": partial(extracted, model),
        "vLLM, one batch after the other": in_turn,
    }
    print(f"{len(requests)} replies, batches of {options.batch}; {read} tokens of prompts")
    for each in (model, other):
        each.generate(requests[:4], BatchRunner(each, settings).sampling, capture_layers=[0])
    lines = [(options.batch, *line) for line in compared(sides, options.repeats, warm=True)]
    print(table(HEADER, lines), flush=True)


_PARTS = {
    "time_a_batch": "timing a batch, for what is announced",
    "run": "the extraction's replies",
    "texts": "the calibration's replies",
    "scores": "likelihoods",
}


def _timed(name: str, own: dict[str, float]) -> Callable[..., object]:
    """A method of the extractor that adds up the processor time it takes."""
    from persona_tui.extraction.extractor import ActivationExtractor

    method = getattr(ActivationExtractor, name)

    def wrapped(*given: object, **named: object) -> object:
        begun = time.process_time()
        try:
            return method(*given, **named)
        finally:
            own[name] = own.get(name, 0.0) + time.process_time() - begun

    return wrapped


def _created(options: argparse.Namespace, root: Path, engine: str) -> tuple[PersonaVector, dict[str, float]]:
    """A persona, and what it took: processor time, by part."""
    from persona_tui.core.jobs import JobContext
    from persona_tui.extraction.extractor import ActivationExtractor
    from persona_tui.model import Sampling
    from persona_tui.project.project import FromArchetype, Project

    for each in ("datasets", "vectors"):
        shutil.copytree(REPOSITORY / each, root / each)
    shutil.copy(REPOSITORY / "config.yaml", root)
    project = Project.open(root, options.model, dtype=options.dtype, engine=engine)
    project.override(
        {
            "extraction.num_samples_per_prompt": -(-options.replies // 5),
            "extraction.max_new_tokens": options.tokens,
            "extraction.batch_size": options.batch,
            "calibration.distil": False,
            "vllm.context": 1024,
            "vllm.eager": options.eager,
        }
    )
    project.model.generate(asked(4), Sampling(4, 0.7, 0.95), capture_layers=[0])
    own: dict[str, float] = {}
    with ExitStack() as watched:
        for name in _PARTS:
            watched.enter_context(mock.patch.object(ActivationExtractor, name, _timed(name, own)))
        begun = time.process_time()
        persona = project.create_persona("tried", FromArchetype("sage"), JobContext()).persona
        own["all"] = time.process_time() - begun
    return persona, own


def creation(options: argparse.Namespace, folder: Path) -> None:
    """Print what a whole `create` takes on both engines: processor time, by part."""
    made = {engine: _created(options, folder / engine, engine) for engine in ("transformers", "vllm")}
    (one, here), (other, there) = made.values()
    lines = [
        (what, f"{here[name]:.1f}", f"{there[name]:.1f}", f"{here[name] / there[name]:.2f}")
        for name, what in {**_PARTS, "all": "all"}.items()
    ]
    print(table(("processor time, seconds", "transformers", "vLLM", "ratio"), lines))
    for name, (each, _) in made.items():
        found = each.calibration
        assert found is not None
        print(f"{name}: {each.metadata['counts']}, gain {found.gain:.5f}, recovered {found.recovered:.4f}")
    alike = cosine(one.raw["response"], other.raw["response"]).min()
    print(f"least cosine of the two, by layer: {float(alike):.6f}")


def written_by_vllm(model: VllmModel, requests: Sequence[Request], sampling: Sampling) -> int:
    """Have vLLM answer by itself, with nothing of ours; returns how many tokens it has written."""
    from vllm import SamplingParams, TokensPrompt

    engine, ends = model.driver._engine, sorted(model._end_tokens)  # type: ignore[attr-defined]
    for number, each in enumerate(requests):
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=(each.seed or 0) % 2**63,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=ends,
            ignore_eos=True,
            detokenize=False,
        )
        engine.add_request(str(number), TokensPrompt(prompt_token_ids=model.encode(each.messages)), params)
    written = 0
    while engine.has_unfinished_requests():
        done = [each.outputs[0].token_ids for each in engine.step() if each.finished]
        written += sum(len(ids) - (ids[-1] in ends) for ids in done)
    return written


OP_SHAPE = (30, 576)  # the starter model's layers and width


def op_alone(rows: Sequence[int], layers: int, hidden: int, device: str) -> None:
    """Print what the op costs in a pass that writes one token for each of some requests."""
    import torch

    from persona_tui.model import Cap
    from persona_tui.vllm import op
    from persona_tui.vllm.wire import Slot

    torch.set_num_threads(1)
    where = torch.device(device)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    buffers = op.SlotBuffers(layers, 4, hidden, max(rows), where, max(rows), traces=True)
    op.set_buffers(buffers)
    first, middle, last = round(0.3 * layers), round(0.6 * layers), round(0.85 * layers)
    added = {layer: 0.02 * torch.randn(hidden) for layer in range(first, middle)}
    caps = {
        layer: Cap(torch.nn.functional.normalize(torch.randn(hidden), dim=0), -1e3)
        for layer in range(middle, last)
    }
    buffers.fill(1, Slot(added, {}))
    buffers.fill(2, Slot(added, caps))
    buffers.trace_one(0, added)

    def microseconds(slots: list[int], places: torch.Tensor | None = None, traced: bool = False) -> float:
        stream, residual = (
            torch.randn(len(slots), hidden, device=where, dtype=dtype) for _ in ("stream", "residual")
        )
        buffers.tell(slots, [1] * len(slots), places, traced)

        def one_pass() -> None:
            for layer in range(layers):
                torch.ops.persona_tui.intervene(stream, residual, layer)

        with torch.inference_mode():
            return 1e6 * (processor_time(one_pass) if device == "cpu" else graph_time(one_pass))

    def costs(count: int) -> dict[str, float]:
        half = [1] * (count // 2) + [0] * (count - count // 2)
        return {
            "plain": microseconds([0] * count),
            "steered alike": microseconds([1] * count),
            "half of them steered": microseconds(half),
            "steered and capped": microseconds([2] * count),
            "steered and summed up": microseconds([1] * count, torch.arange(1, count + 1)),
            "steered, capped and traced": microseconds([2] * count, traced=True),
        }

    lines = [(count, what, f"{cost:.0f}") for count in rows for what, cost in costs(count).items()]
    print(table(("rows", "what", "microseconds a pass"), lines), flush=True)


def processor_time(work: Callable[[], None]) -> float:
    """Seconds of the processor, the fewest of 200 times."""
    best = float("inf")
    for _ in range(200):
        begun = time.process_time()
        work()
        best = min(best, time.process_time() - begun)
    return best


def graph_time(work: Callable[[], None]) -> float:
    """Seconds of a captured graph on the GPU, the fewest of 200 times."""
    import torch

    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    best = float("inf")
    for _ in range(200):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3)
    return best


def slots_alone(counts: Sequence[int], layers: int, hidden: int) -> None:
    """Print the memory of slots, as the process has it."""
    import torch

    from persona_tui.vllm import op
    from persona_tui.vllm.wire import Slot

    band = range(round(0.3 * layers), round(0.6 * layers))
    filled = Slot({layer: torch.ones(hidden) for layer in band}, {})
    lines = []
    for count in counts:
        before = resident()
        buffers = op.SlotBuffers(layers, count, hidden, count, torch.device("cpu"))
        made = resident()
        for place in range(1, count):
            buffers.fill(place, filled)
        used = resident()
        computed = count * layers * hidden * 4 / 1e6
        lines.append((count, f"{made - before:.0f} MB", f"{used - before:.0f} MB", f"{computed:.0f} MB"))
        del buffers
    print(table(("slots", "unused", "all in use", "computed"), lines), flush=True)


def resident() -> float:
    """Memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def memory() -> None:
    """Print the memory of slots."""
    lines = [
        (name, slots, f"{slots * layers * hidden * 4 / 1e6:,.0f} MB")
        for name, (layers, hidden) in MODELS.items()
        for slots in (33, 65, 257, 1025)
    ]
    print(table(("model", "slots", "computed"), lines))


def saved(shape: str, dtype: str, folder: Path) -> str:
    """Random weights at a shape, saved; where."""
    import torch

    model, tokenizer = make_model(shape, "cuda" if torch.cuda.is_available() else "cpu", dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return str(folder)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--shape", choices=list(SHAPES), help="random weights, in place of a model")
    parser.add_argument("--folder", type=Path, help="keep those weights here, and use them if they are here")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu", help="for --op")
    parser.add_argument("--memory", type=float, default=0.9, help="share of a GPU's memory")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--replies", type=int, default=160, help="of --extraction")
    parser.add_argument("--batch", type=int, default=32, help="of --extraction: replies at a time")
    parser.add_argument(
        "--block", type=int, default=32, help="tokens that are in the cache together, on a CPU"
    )
    parser.add_argument("--slots", type=int, nargs="+")
    for name in ("eager", "bare", "check", "extraction", "create", "op"):
        parser.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    shape = SHAPES[options.shape][0] if options.shape else None
    layers, hidden = (shape[2], shape[0]) if shape else OP_SHAPE
    if options.slots:
        slots_alone(options.slots, layers, hidden)
        return
    if options.op:
        op_alone(options.rows, layers, hidden, options.device)
        return
    with tempfile.TemporaryDirectory() as temporary:
        name = options.model
        if options.create:
            creation(options, Path(temporary))
            return
        if options.shape:
            folder = options.folder or Path(temporary) / options.shape
            ready = (folder / "config.json").is_file()
            name = str(folder) if ready else saved(options.shape, options.dtype, folder)
        inside(name, options)


def inside(name: str, options: argparse.Namespace) -> None:
    """Print what is measured with vLLM."""
    from persona_tui.core.sections import VllmSettings
    from persona_tui.model import ModelWrapper, Sampling
    from persona_tui.vllm import engine, op
    from persona_tui.vllm.engine import VllmModel

    engine.BLOCK_ON_CPU = options.block
    if options.bare:
        op.watch_blocks = lambda model: 0
    settings = VllmSettings(
        requests=max(64, *options.rows), context=1024, eager=options.eager, memory=options.memory
    )
    begun = time.perf_counter()
    model = VllmModel.start(name, dtype=options.dtype, settings=settings)
    print(f"vLLM has started in {time.perf_counter() - begun:.0f} s", flush=True)
    sampling = Sampling(options.tokens, 0.7, 0.95)
    if options.bare:
        plain_of(model, options.rows, sampling, options.repeats)
    elif not options.extraction:
        costs(model, options.rows, sampling, options.repeats)
    if options.check or options.extraction:
        other = ModelWrapper.load(name, dtype=options.dtype)
        if options.check:
            check(model, other)
        if options.extraction:
            extraction(model, other, options)
    memory()
    model.driver.shut_down()


if __name__ == "__main__":
    main()
