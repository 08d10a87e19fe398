"""`serve`: other programs chat with the model."""

from __future__ import annotations

import click

from persona_tui.cli.options import Invocation, pass_invocation
from persona_tui.monitors.second_opinion import NAMED_BY, Validator

_LOOPBACK = "127.0.0.1"


@click.command()
@click.option("--host", default=_LOOPBACK, show_default=True, help="The address to listen on.")
@click.option("--port", default=8337, show_default=True, type=click.IntRange(0, 65535), help="The port.")
@click.option(
    "--api-key",
    metavar="KEY",
    envvar="PERSONA_TUI_API_KEY",
    help="The API key that clients must send; better set PERSONA_TUI_API_KEY, which others cannot see.",
)
@click.option(
    "--rows",
    default=32,
    show_default=True,
    type=click.IntRange(1),
    help="How many replies are written at a time.",
)
@click.option(
    "--queue", default=128, show_default=True, type=click.IntRange(0), help="How many replies may wait."
)
@click.option(
    "--timeout",
    default=600.0,
    show_default=True,
    type=click.FloatRange(1),
    help="How many seconds a request may take, waiting included.",
)
@click.option(
    "--grace",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0),
    help="How many seconds running replies get to finish when the server is stopped.",
)
@click.option(
    "--validator",
    envvar=NAMED_BY,
    metavar="COMMAND|URL",
    help=f"Has the last word on replies while a guard is on. [env: {NAMED_BY}]",
)
@click.option(
    "--lend",
    is_flag=True,
    help="With --engine vllm: let other machines run jobs here, with --engine URL and the API key.",
)
@click.argument("vllm_options", nargs=-1, type=click.UNPROCESSED)
@pass_invocation
def serve(
    invocation: Invocation,
    host: str,
    port: int,
    api_key: str | None,
    rows: int,
    queue: int,
    timeout: float,
    grace: float,
    validator: str | None,
    lend: bool,
    vllm_options: tuple[str, ...],
) -> None:
    """Serve the model to OpenAI's and Ollama's clients.

    A persona is a model of its own: starter+sage, starter+sage:0.5, starter+sage:0.5+trickster:0.5. Needs the
    extra "server". See docs/server.md. With --engine vllm, vLLM serves and gets what follows `--`: see
    docs/vllm.md.
    """
    if invocation.project.settings.model.engine == "vllm":
        if validator is not None:
            raise click.UsageError("vLLM's server has no validator.", click.get_current_context())
        _serve_with_vllm(invocation, host, port, api_key, rows, vllm_options, lend)
        return
    if vllm_options or lend:
        what = "takes more options" if vllm_options else "can be lent"
        raise click.UsageError(f"Only --engine vllm {what}.", click.get_current_context())
    from persona_tui.cli.progress import note
    from persona_tui.core.errors import PersonaTuiError

    try:
        from persona_tui.server.limits import Capacity
        from persona_tui.server.run import Server
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("persona_tui"):
            raise
        raise PersonaTuiError(f'The server needs {error.name}: pip install "persona-tui[server]".') from error

    def ready() -> None:
        note(f"Serving {server.service.base} at {server.url}. Ctrl-c ends it.")
        if api_key is None and host not in (_LOOPBACK, "localhost", "::1"):
            note("Anyone who can reach this address can use it: set --api-key to change that.")

    limits = Capacity(rows=rows, waiting=queue, seconds=timeout, closing=grace)
    last_word = Validator(validator) if validator is not None else None
    server = Server(invocation.project, host, port, api_key, limits, last_word)
    server.run(ready)


def _serve_with_vllm(
    invocation: Invocation,
    host: str,
    port: int,
    api_key: str | None,
    rows: int,
    more: tuple[str, ...],
    lent: bool,
) -> None:
    """Become `vllm serve`, with the workspace's personas."""
    import os

    from persona_tui.cli.progress import note
    from persona_tui.vllm.serve import command, environment, serve

    project = invocation.project
    words = command(project.settings, project.slug, host, port, rows, more, lent)
    if api_key is None and host not in (_LOOPBACK, "localhost", "::1"):
        note("Anyone who can reach this address can use it: set --api-key to change that.")
    note(f"vLLM serves {project.slug} at http://{host}:{port}. Ctrl-c ends it.")
    from persona_tui.model.sources import STARTER

    name = STARTER if project.slug == STARTER else project.settings.model.name
    serve(words, environment(project.workspace.root, name, api_key, os.environ, lent))
