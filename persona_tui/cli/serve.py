"""`serve`: other programs chat with the model."""

from __future__ import annotations

import click

from persona_tui.cli.invocation import Invocation, pass_invocation

_LOOPBACK = "127.0.0.1"


@click.command()
@click.option("--host", default=_LOOPBACK, show_default=True, help="The address to listen at.")
@click.option("--port", default=8337, show_default=True, type=click.IntRange(0, 65535), help="The port.")
@click.option(
    "--api-key",
    metavar="KEY",
    envvar="PERSONA_TUI_API_KEY",
    help="What clients have to send; better in PERSONA_TUI_API_KEY, which other users cannot see.",
)
@click.option("--rows", default=32, show_default=True, type=click.IntRange(1), help="Replies at a time.")
@click.option(
    "--queue", default=128, show_default=True, type=click.IntRange(0), help="Replies that may wait."
)
@click.option(
    "--timeout",
    default=600.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Seconds that a request may take, its waiting included.",
)
@click.option(
    "--grace",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds that running replies have when the server is told to end.",
)
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
) -> None:
    """Serve the model to OpenAI's and Ollama's clients.

    A persona is a model of its own: starter+sage, starter+sage:0.5, starter+sage:0.5+trickster:0.5. Needs the
    extra "server". See docs/server.md.
    """
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
    server = Server(invocation.project, host, port, api_key, limits)
    server.run(ready)
