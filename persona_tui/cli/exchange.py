"""`export` and `import`: vectors for other programs, and theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from persona_tui.cli.options import Invocation, Within, chosen_weights, pass_invocation
from persona_tui.cli.output import check_free, echo, force_option, json_option, print_json
from persona_tui.cli.progress import work
from persona_tui.core.mix import STRENGTH

if TYPE_CHECKING:
    from persona_tui.formats.write import Exported

# As `project.exchange.FORMATS`, which would load torch for a help page.
_FORMATS = ("gguf", "hotwire", "persona-vectors", "assistant-axis", "capping", "pt", "safetensors", "baked")


@click.command("export")
@click.argument("name", required=False)
@click.option("--blend", metavar="A:W,B:W", help="A blend instead of NAME.")
@click.option("--format", "-f", "form", type=click.Choice(_FORMATS), required=True, help="See below.")
@click.option("--output", "-o", type=click.Path(path_type=Path), metavar="PATH", help="[default: NAME, here]")
@click.option(
    "--strength",
    type=Within(STRENGTH),
    metavar="S",
    help="Strength to multiply the vectors by. [default: 0.3]",
)
@click.option("--raw", is_flag=True, help="Keep the vectors' safety component.")
@force_option
@json_option
@pass_invocation
def export(
    invocation: Invocation,
    name: str | None,
    blend: str | None,
    form: str,
    output: Path | None,
    strength: float | None,
    raw: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write NAME for another program.

    NAME is a persona, trait:NAME, axis:assistant or axis:safety.

    \b
    gguf             control vector: llama.cpp, repeng, saklas
    hotwire          hotwire-vllm, with the request that speaks with it
    persona-vectors  [layers + 1, hidden]: persona_vectors
    assistant-axis   axis or role: assistant-axis
    capping          an axis with its floors: assistant-axis
    pt               one dictionary with the vectors by layer
    safetensors      one tensor for each layer
    baked            a whole model with the steering in its weights
    """
    from persona_tui.formats.write import SUFFIXES
    from persona_tui.project.exchange import AXIS_PREFIX, export_vectors

    if (name is None) == (blend is None):
        raise click.UsageError("Give either NAME or --blend.", click.get_current_context())
    project = invocation.project
    axis = name.removeprefix(AXIS_PREFIX) if name is not None and name.startswith(AXIS_PREFIX) else None
    weights = {} if axis is not None else chosen_weights(project, name, blend)
    called = (axis or "+".join(weights)).replace(":", "-")
    path = output or Path(f"{called}{'' if form == 'baked' else SUFFIXES.get(form, '.pt')}")
    check_free(path, force=force and form != "baked")
    written, doses = export_vectors(project, weights, form, path, strength, safe=not raw, axis=axis)
    if as_json:
        print_json(
            {
                "path": str(written.path),
                "format": form,
                "notes": list(written.notes),
                "request": written.request,
                "dose": {str(layer): round(dose, 4) for layer, dose in doses.items()},
            }
        )
    else:
        _print_written(written, doses)


def _print_written(written: Exported, doses: Mapping[int, float]) -> None:
    echo(f"Wrote {written.path}.")
    for note in written.notes:
        echo(f"  {note}")
    if doses:
        shares = ", ".join(f"{layer}: {dose:.1%}" for layer, dose in doses.items())
        echo(f"Dose by layer, of ordinary replies' length: {shares}; {sum(doses.values()):.0%} in all.")
    if written.request is not None:
        echo(written.request["vllm_xargs"]["hotwire"])


@click.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="What to call it. [default: what the file says]")
@click.option("--only", metavar="NAME", help="Which direction to take, if the file has several.")
@click.option("--layer", type=int, metavar="N", help="The vector's layer, if the file does not say.")
@click.option(
    "--indices",
    type=click.Choice(["auto", "blocks", "hidden-states"]),
    default="auto",
    show_default=True,
    help="What the rows of a .pt file stand for.",
)
@json_option
@pass_invocation
def import_(
    invocation: Invocation,
    path: Path,
    name: str | None,
    only: str | None,
    layer: int | None,
    indices: Any,
    as_json: bool,
) -> None:
    """Read the vectors in PATH as personas of the model.

    PATH is a control vector (.gguf), a .pt of persona_vectors, assistant-axis, hotwire-vllm or a script that
    saves one vector by layer, an .svec, .safetensors with a tensor for each layer, or a folder of saklas'.
    A .pt is never unpickled: only tensors and plain values are read.

    What was imported is uncalibrated: it gets a usual size. Calibrate it with `calibrate NAME`, best with
    --prompts or --description, which say whom it should sound like.
    """
    from persona_tui.project.exchange import import_vectors

    project = invocation.project
    saved = work(
        lambda context: import_vectors(
            project, path, context, name, layer=layer, indices=indices, wanted=only
        )
    )
    if as_json:
        print_json(
            [
                {
                    "name": each.name,
                    "layers": list(each.layers),
                    "target_layers": each.metadata["target_layers"],
                    "gain": each.metadata["gain"],
                    **each.metadata["imported"],
                }
                for each in saved
            ]
        )
        return
    for each in saved:
        about = each.metadata["imported"]
        echo(f"Imported {each.name}: {about['format']}, layers {each.layers[0]} to {each.layers[-1]}.")
        for note in about.get("notes", []):
            echo(f"  {note}")
    echo(f"Not calibrated yet: persona-tui calibrate {saved[-1].name}")
