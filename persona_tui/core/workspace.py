"""Where things are: the workspace's folders, safe names, and the files that travel inside the package."""

import hashlib
import os
import re
import secrets
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from platformdirs import user_data_dir

from persona_tui.core.config import Settings, load_settings
from persona_tui.core.errors import WorkspaceError
from persona_tui.core.files import change, safe_name
from persona_tui.core.mix import PREFIXES

CONFIG_NAME = "config.yaml"
# The order matters: the configuration comes last, so that a folder which has it is complete.
PACKAGED = ("datasets", "vectors", CONFIG_NAME)


_HUB_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_MAX_SLUG = 120
# One model, one folder of vectors, whatever name it is called by.
_SAME_FOLDER = {"tiny": "builtin", "starter": "HuggingFaceTB--SmolLM2-135M-Instruct"}


@dataclass(frozen=True)
class Workspace:
    """The folder with config.yaml, datasets/ and vectors/ that a run reads and writes."""

    root: Path

    @classmethod
    def find(cls, explicit: Path | None = None, make: bool = True) -> "Workspace":
        """Return the workspace to use, and make it on first use.

        That is `explicit` if given; else the nearest folder, from the current one upwards, that has a
        config.yaml; else the user's data folder. The first and the last are filled from the package.

        Args:
            explicit: the folder that was asked for.
            make: whether `explicit` is made if it does not exist.

        Raises:
            WorkspaceError: `explicit` holds other things or is not there, or a folder cannot be made.
        """
        if explicit is not None:
            root = explicit.expanduser().absolute()
            if not make and not root.exists():
                advice = f"make a workspace there with `persona-tui --workspace {explicit} init`"
                raise WorkspaceError(f"There is no folder {root}: check --workspace, or {advice}.")
            _refuse_foreign(root)
        else:
            root = _nearest_above(_here()) or Path(user_data_dir("persona-tui", appauthor=False))
        if (root / CONFIG_NAME).is_dir():
            raise WorkspaceError(
                f"{root / CONFIG_NAME} is a folder, where the file with the settings belongs."
            )
        if (root / CONFIG_NAME).is_symlink() and not (root / CONFIG_NAME).exists():
            raise WorkspaceError(
                f"{root / CONFIG_NAME} is a link to a file that is not there: mend it or delete it."
            )
        if not (root / CONFIG_NAME).is_file():
            _fill(root)
        return cls(root)

    @cached_property
    def settings(self) -> Settings:
        """The settings in this workspace's config.yaml, read once; the defaults if it has none."""
        return load_settings(self.config_path if self.config_path.is_file() else None)

    @property
    def config_path(self) -> Path:
        """config.yaml of this workspace, whether it exists or not."""
        return self.root / CONFIG_NAME

    @property
    def datasets(self) -> Path:
        """The folder of data sets, as `paths.datasets` says."""
        return self.root / Path(self.settings.paths.datasets).expanduser()

    @property
    def vectors(self) -> Path:
        """The folder with one folder of vectors per model, as `paths.vectors` says."""
        return self.root / Path(self.settings.paths.vectors).expanduser()

    @property
    def sessions(self) -> Path:
        """The folder with the saved conversations."""
        return self.root / "sessions"

    def slug(self, model_name: str) -> str:
        """Return the name of the folder for a model's vectors here; see `model_slug`.

        A folder of models named as `models/x` used to be taken for a name on the hub: vectors that lie under
        `models--x` are found there.

        Raises:
            WorkspaceError: the name is a path to nothing.
        """
        slug, path = model_slug(model_name), Path(model_name).expanduser()
        if (self.vectors / slug).is_dir():
            return slug
        if _is_model(path):
            whole = path.resolve()
            former = f"{whole.parent.name}--{whole.name}"
            return former if (self.vectors / former).is_dir() else slug
        if _is_path(model_name) and not path.exists():
            raise WorkspaceError(f"There is no model folder {model_name}.")
        return slug

    def model_dir(self, model: str) -> Path:
        """Return the folder with the vectors of a model, by its name or its slug.

        Raises:
            WorkspaceError: the name is a path to nothing.
        """
        return self.vectors / self.slug(model)

    def personas_dir(self, slug: str) -> Path:
        """Return the folder with the personas of the model with this slug."""
        return self.model_dir(slug) / "personas"

    def traits_dir(self, slug: str) -> Path:
        """Return the folder with the traits of the model with this slug."""
        return self.model_dir(slug) / "traits"


def packaged_root() -> Path:
    """Return the folder with the config.yaml, datasets/ and vectors/ that came with the program.

    In a wheel they lie inside the package; in a source checkout, at the root of the repository.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_data", package.parent):
        if (folder / CONFIG_NAME).is_file():
            return folder
    raise WorkspaceError(f"This installation of persona-tui is incomplete: {package / '_data'} is missing.")


def vector_file(model_dir: Path, name: str) -> Path:
    """Return the file of a persona in a model's folder, or of a trait if the name begins with `trait:`.

    Raises:
        WorkspaceError: the name is a path or has characters that names cannot have.
    """
    prefix = next((each for each in PREFIXES if name.startswith(each)), "")
    folder = PREFIXES.get(prefix, "personas")
    return model_dir / folder / f"{safe_name(name.removeprefix(prefix))}.safetensors"


def model_slug(model_name: str) -> str:
    """Return the name of the folder for a model's vectors.

    A Hugging Face name keeps both its parts, "Qwen/Qwen2.5-7B" -> "Qwen--Qwen2.5-7B", and so does one of
    Ollama's. A folder or file gets its own name and a few digits that depend on where it is, so that two
    folders called "model" do not collide: the same ones for `models/x`, `./models/x/` and its whole path.
    """
    if model_name in _SAME_FOLDER:
        return _SAME_FOLDER[model_name]
    if model_name.startswith("ollama:"):
        name, _, tag = model_name.removeprefix("ollama:").partition(":")
        return re.sub(r"[^A-Za-z0-9_.-]+", "--", f"ollama/{name}/{tag or 'latest'}")[:_MAX_SLUG]
    there = _is_model(Path(model_name).expanduser())  # as the loader, which looks for a folder first
    if not there and _HUB_NAME.fullmatch(model_name) and len(model_name) <= _MAX_SLUG:
        return model_name.replace("/", "--")
    folder = Path(model_name).expanduser().resolve()
    digest = hashlib.sha256(str(folder).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.name).strip(".-") or "model"
    return f"{stem[:80]}-{digest}"


def _is_model(path: Path) -> bool:
    """Return whether a path leads to a model's folder, or to a GGUF file."""
    try:
        return (path / "config.json").is_file() or (path.suffix.lower() == ".gguf" and path.is_file())
    except OSError:  # too long for a path, say
        return False


def _is_path(name: str) -> bool:
    """Return whether a model's name can only be a path."""
    return name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1


def _here() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise WorkspaceError(
            "The working directory has been deleted: change to another one, or give a --workspace."
        ) from error


def _nearest_above(folder: Path) -> Path | None:
    candidates = (folder, *folder.parents)
    return next((place for place in candidates if os.path.lexists(place / CONFIG_NAME)), None)


def _refuse_foreign(root: Path) -> None:
    """Keep a mistyped --workspace from filling somebody's home folder with ours."""
    if not root.exists() or os.path.lexists(root / CONFIG_NAME):
        return
    if not root.is_dir():
        raise WorkspaceError(f"{root} is not a folder.")
    foreign = any(entry.name not in PACKAGED and not entry.name.startswith(".") for entry in root.iterdir())
    # Asked again: another process may have finished making the workspace, and used it, meanwhile.
    if foreign and not os.path.lexists(root / CONFIG_NAME):
        raise WorkspaceError(
            f"{root} is not a workspace: it has no config.yaml. Name a new or empty folder instead."
        )


def _fill(root: Path) -> None:
    """Copy what the package brings. What is there already stays; an interrupted run can be repeated.

    Processes that start at once wait for the first of them, and find its work done.
    """
    source = packaged_root()
    try:
        with change(root, "first use"):
            for name in PACKAGED:
                if (source / name).exists() and not (root / name).exists():
                    _copy_whole(source / name, root / name)
    except OSError as error:
        raise WorkspaceError(f"The workspace {root} cannot be made: {_reason(error)}.") from error


def _reason(error: OSError) -> str:
    """Return why something could not be copied; of a folder, why its first file could not."""
    if isinstance(error, shutil.Error):
        said = str(error.args[0][0][2])  # "[Errno 28] No space left on device: 'from' -> 'to'"
        return said.partition("] ")[2].partition(":")[0] or said
    return error.strerror or str(error)


def _copy_whole(source: Path, target: Path) -> None:
    """Copy a file or folder under a temporary name first, so that `target` is never half of it."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        if source.is_dir():
            shutil.copytree(source, temporary, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)
