"""The options before a command, which lead to a project, and those that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from persona_tui.core.mix import PLAUSIBILITY, STRENGTH, Range

if TYPE_CHECKING:
    from persona_tui.project.project import Project

F = TypeVar("F", bound=Callable[..., Any])

# Commands that make the folder of --workspace; for all others, one that does not exist is a slip of the pen.
_MAKERS = (
    "init",
    "create",
    "extract-axes",
    "import",
    "config set",
    "dataset generate",
    "dataset import",
    "monitor fit",
    "trait extract",
)


@dataclass
class Invocation:
    """What the group's options say, for its commands."""

    workspace: Path | None = None
    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    engine: str | None = None
    trusted_model: str | None = None  # as --model named it; not what a session names later
    debug: bool = False

    @property
    def folder(self) -> Path | None:
        """The folder of --workspace, made on first use by a command that writes there.

        Raises:
            WorkspaceError: it does not exist, and the command only reads.
        """
        from persona_tui.core.processes import processes
        from persona_tui.core.workspace import Workspace

        context = click.get_current_context(silent=True)
        called = context.command_path.partition(" ")[2] if context is not None else ""
        if self.workspace is not None and called not in _MAKERS:
            processes().from_main(lambda: Workspace.find(self.workspace, make=False))
        return self.workspace

    @cached_property
    def project(self) -> Project:
        """The workspace and its model, opened on first use."""
        from persona_tui.cli.progress import note, prepare_model
        from persona_tui.project.project import Project

        project = Project.open(
            self.folder,
            self.model,
            self.device,
            self.dtype,
            self.quantization,
            self.trusted_model,
            self.engine,
        )
        project.on_model_load = lambda name: prepare_model(name, fell_back=project.fell_back)
        project.on_note = note
        return project


pass_invocation = click.make_pass_decorator(Invocation)


class Within(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """A number within a range."""

    name = "float"

    def __init__(self, range: Range) -> None:
        self._range = range

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a number, or fail with what it must be."""
        with suppress(ValueError, TypeError):
            if (number := float(value)) in self._range:
                return number
        self.fail(f"it must be {self._range}, not {value}.", param, ctx)


# Option -> the setting that it overrides.
_EXTRACTION = {
    "questions": "extraction.questions",
    "samples": "extraction.num_samples_per_prompt",
    "max_new_tokens": "extraction.max_new_tokens",
    "batch_size": "extraction.batch_size",
    "temperature": "extraction.temperature",
    "seed": "extraction.seed",
    "baseline": "extraction.baseline",
}


def extraction_options(command: F) -> F:
    """Add the options of extraction; `override_extraction` takes them."""
    for option in reversed(
        (
            click.option("--questions", type=int, metavar="N", help="Number of different questions to ask."),
            click.option(
                "--samples",
                type=int,
                metavar="N",
                help="Replies to each system prompt, each to a different question.",
            ),
            click.option("--max-new-tokens", type=int, metavar="N", help="Longest response, in tokens."),
            click.option("--batch-size", type=int, metavar="N", help="Responses generated at a time."),
            click.option(
                "--temperature", type=float, metavar="T", help="Sampling temperature of the responses."
            ),
            click.option("--seed", type=int, metavar="N", help="The same seed gives the same vectors."),
            click.option(
                "--baseline",
                metavar="none|default|TEXT",
                help="System prompt of the replies that personas are compared with; default: the template's.",
            ),
            click.option("--no-calibrate", is_flag=True, help="Skip calibration."),
        )
    ):
        command = option(command)
    return command


def override_extraction(project: Project, options: dict[str, Any]) -> None:
    """Apply the options of extraction, for this run only.

    Raises:
        ConfigError: a value is out of range; names its setting.
    """
    values = {_EXTRACTION[name]: value for name, value in options.items() if name in _EXTRACTION}
    given = {key: value for key, value in values.items() if value is not None}
    if options.get("no_calibrate"):
        given["calibration.enabled"] = False
    project.override(given)


def no_think_option(command: F) -> F:
    """Add `--no-think`, which sets `generation.think`."""
    return click.option(
        "--no-think", is_flag=True, help="Have a thinking model answer at once, if its template can."
    )(command)


def via_option(command: F) -> F:
    """Add `--via URL MODEL`, which `Project.write_via` takes."""
    return click.option(
        "--via",
        nargs=2,
        metavar="URL MODEL",
        help="Another model writes: one behind an OpenAI-compatible endpoint, such as Ollama's "
        "http://localhost:11434/v1. An API key is read from OPENAI_API_KEY (see writing.key_variable).",
    )(command)


def answer_options(seed: str) -> Callable[[F], F]:
    """Return what adds the options of one answer: `--system`, and those that `override_sampling` takes.

    Args:
        seed: the help for `--seed`.
    """

    def add(command: F) -> F:
        for option in reversed(
            (
                click.option("--system", metavar="TEXT", help="A system prompt."),
                click.option("--max-new-tokens", type=int, metavar="N", help="Longest answer, in tokens."),
                click.option(
                    "--temperature", type=float, metavar="T", help="0 always picks the likeliest token."
                ),
                click.option("--seed", type=int, metavar="N", help=seed),
            )
        ):
            command = option(command)
        return command

    return add


def override_sampling(
    project: Project, max_new_tokens: int | None, temperature: float | None, seed: int | None
) -> None:
    """Sample as the options say, and as config.yaml says where they say nothing."""
    given = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    project.override({f"generation.{key}": value for key, value in given.items() if value is not None})


def persona_options(command: F) -> F:
    """Add the options that say who speaks; `chosen_weights` takes the first and the last."""
    for option in reversed(
        (
            click.option("--persona", "-p", metavar="NAME", help="Who speaks."),
            click.option(
                "--strength",
                "-s",
                type=Within(STRENGTH),
                help="0 = unsteered, 0.3 = clear, 1 = far too much.",
            ),
            click.option(
                "--plausibility",
                type=Within(PLAUSIBILITY),
                help="The guide: how plausible each token must be unsteered; 0 = off.",
            ),
            click.option(
                "--blend",
                "-b",
                metavar="SPEC",
                help="Several personas: sage:0.5,trickster:0.3. Only the proportions count, not the sum.",
            ),
        )
    ):
        command = option(command)
    return command


def chosen_weights(project: Project, persona: str | None, blend: str | None) -> dict[str, float]:
    """Return the weights that `--persona` or `--blend` stand for.

    Raises:
        UsageError: both were given.
        PersonaTuiError: the blend cannot be read, or a persona does not exist.
    """
    if persona is not None and blend is not None:
        raise click.UsageError("Use either --persona or --blend, not both.", click.get_current_context())
    if persona is None and blend is None:
        return {}
    weights = {str(persona): 1.0} if blend is None else _parse_blend(blend)
    for name in weights:
        _check_exists(project, name)
    return weights


def _check_exists(project: Project, name: str) -> None:
    """Raise what looking for a persona raises, but do not load torch for one that is there."""
    from persona_tui.core.workspace import vector_file

    if not vector_file(project.workspace.model_dir(project.slug), name).is_file():
        project.personas.get(name)


def _parse_blend(text: str) -> dict[str, float]:
    from persona_tui.core.mix import parse_blend

    return parse_blend(text)
