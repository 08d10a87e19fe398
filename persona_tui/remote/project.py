"""A workspace on this machine with a model on another: what a front end opens for `chat --connect`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from persona_tui.core.config import Settings, override
from persona_tui.core.connection import Connection, NotThere
from persona_tui.core.errors import EndpointError
from persona_tui.core.files import atomic_write_bytes, safe_name
from persona_tui.core.workspace import Workspace
from persona_tui.project.project import Project
from persona_tui.vectors.manager import sha256

if TYPE_CHECKING:
    from persona_tui.monitors.guard import Guard, GuardMode
    from persona_tui.steering.engine import SteeringEngine

NATIVE = 2  # the version of the server's native API that this program talks
_SUFFIX = ".safetensors"
_LONGEST = 96  # characters of a folder's name


class RemoteProject(Project):
    """A workspace whose model is served elsewhere.

    The server's vectors are copied into a folder of this workspace, `vectors/MODEL-at-HOST`, and read from
    there: only what has changed is fetched again.
    """

    def __init__(
        self, workspace: Workspace, settings: Settings, connection: Connection, about: Mapping[str, Any]
    ) -> None:
        """
        Args:
            workspace: where sessions are saved.
            settings: of this machine; the floor is as the server has it.
            connection: to the server.
            about: what the server says about itself.
        """
        capping = about["capping"]
        values: dict[str, object] = {
            "model.name": about["model"],
            "model.engine": "transformers",  # whatever this machine would use itself
            "steering.capping_layers": list(capping["layers"]),
            "steering.capping_axis": capping["axis"],
            "steering.safety_floor_percentile": capping["percentile"],
        }
        if not about.get("guides", True):
            values["steering.plausibility"] = 0.0
        super().__init__(workspace, override(settings, values))
        self.at = connection.url
        self._connection, self._server = connection, about
        self._copied = False

    @classmethod
    def connect(cls, url: str, api_key: str | None = None, workspace: Path | None = None) -> Self:
        """Ask a server what it serves; no vectors are fetched yet.

        Raises:
            ConfigError: this is not an address.
            EndpointError: one line that says why nothing can be had there.
        """
        connection = Connection(url, api_key)
        try:
            about = connection.get("/native")
        except NotThere as error:
            raise EndpointError(
                f"{connection.url} is not a persona-tui server, or is an older version, which only "
                "OpenAI's and Ollama's clients can use"
            ) from error
        if not isinstance(about, dict) or about.get("native") != NATIVE:
            version = about.get("version") if isinstance(about, dict) else None
            raise EndpointError(
                f"{connection.url} is a server of another version (persona-tui {version}): use the same here "
                "and there"
            )
        connection.seconds = float(about["seconds"])
        found = Workspace.find(workspace)
        return cls(found, found.settings, connection, about)

    @property
    def slug(self) -> str:
        """The name of the folder of vectors: the model's, and where it is."""
        name = self.settings.model.name.replace("/", "--")
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{name}-at-{self._connection.host}")[:_LONGEST]

    @property
    def n_parameters(self) -> int:
        """How large the model is."""
        return int(self._server["parameters"])

    @property
    def engine(self) -> SteeringEngine:
        """What has the server write. The server's vectors are copied first.

        Raises:
            EndpointError: they cannot be had.
            WorkspaceError: they cannot be written.
        """
        if self._engine is None:
            from persona_tui.remote.engine import RemoteEngine
            from persona_tui.remote.model import RemoteModel

            self.copy_vectors()
            self._engine = RemoteEngine(
                RemoteModel(self._connection, self._server), self.personas, self.settings
            )
            self._engine.on_note = self._note
        return self._engine

    def missing_vectors(self) -> list[str]:
        """Return the server's vectors that are not here yet, or have changed there."""
        folder = self.workspace.model_dir(self.slug)
        paths = {name: _path(folder, name) for name in self._server["vectors"]}
        digests = self._server["vectors"]
        return [name for name, path in paths.items() if not path.is_file() or sha256(path) != digests[name]]

    def copy_vectors(self) -> None:
        """Fetch the server's vectors, as far as they are not here, and forget those that it has no more."""
        if self._copied:
            return
        folder, wanted = self.workspace.model_dir(self.slug), dict(self._server["vectors"])
        for name in self.missing_vectors():
            path, digest = _path(folder, name), wanted[name]
            content = self._connection.file(f"/native/vectors/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(path, content, inside=folder)
            if sha256(path) != digest:
                raise EndpointError(f"{name} has changed at {self.at} meanwhile: connect again")
        for path in self._copies(folder):
            if path not in {_path(folder, name) for name in wanted}:
                path.unlink()
        self._personas, self._copied = None, True

    @staticmethod
    def _copies(folder: Path) -> list[Path]:
        axes = [folder / f"axes{_SUFFIX}"]
        return [
            path
            for path in [*axes, *folder.glob(f"personas/*{_SUFFIX}"), *folder.glob(f"traits/*{_SUFFIX}")]
            if path.is_file()
        ]

    def new_guard(self, mode: GuardMode | None = None) -> Guard:
        """Return a guard that judges with the server's monitor."""
        from persona_tui.remote.guard import RemoteGuard

        guard = RemoteGuard(self._connection.url, self._server["monitor"])
        guard.start_in(mode or self.settings.monitoring.guard)
        return guard


def _path(folder: Path, name: str) -> Path:
    """Return where a copy belongs; a name is `axes`, `personas/NAME` or `traits/NAME`.

    Raises:
        EndpointError: it is something else.
    """
    kind, slash, one = name.partition("/")
    if name == "axes":
        return folder / f"axes{_SUFFIX}"
    if kind not in ("personas", "traits") or not slash:
        raise EndpointError(f"a server offers a file that is not known here: {name[:80]!r}")
    return folder / kind / f"{safe_name(one)}{_SUFFIX}"
