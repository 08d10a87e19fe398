"""The personas of one model: what there is, what is loaded, and blends of them.

Which personas are loaded is kept in a small file, so that what `persona-tui load sage` did is still true for
the next command.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from persona_tui.core.documents import json_value, open_plain, read_plain
from persona_tui.core.errors import (
    GenerationError,
    PersonaNotFoundError,
    PersonaTuiError,
    VectorFileError,
    WorkspaceError,
)
from persona_tui.core.files import atomic_write_text, change, check_case
from persona_tui.core.identity import ModelSketch
from persona_tui.core.mix import MONITOR_PREFIX, TRAIT_ALIASES, TRAIT_PREFIX, WEIGHT
from persona_tui.vectors.axes import Axes
from persona_tui.vectors.files import RECIPE, SUFFIX, VectorStore, check_kind, load_tensors
from persona_tui.vectors.maths import blend
from persona_tui.vectors.persona import PersonaVector, default_gains
from persona_tui.vectors.roles import ROLES_FILE, RoleMeans

AXES_FILE = f"axes{SUFFIX}"
STATE_FILE = "loaded.json"
PROMPTS_PER_PERSONA = 5


class PromptGenerator(Protocol):
    """Writes system prompts for a described character (`prompts.DatasetGenerator`)."""

    def generate_persona_prompts(self, description: str, n: int = ...) -> list[dict[str, Any]]:
        """Return up to `n` records with a "system_prompt" each."""
        ...


class PersonaExtractor(Protocol):
    """Turns system prompts into a persona (`extraction`)."""

    def extract_persona(
        self, name: str, prompts: list[dict[str, Any]], *, description: str | None = None, source: str = ...
    ) -> PersonaVector:
        """Return the persona that the prompts ask for."""
        ...

    def calibrated(self, persona: PersonaVector) -> PersonaVector:
        """Return the persona calibrated, if that is configured; else as it is."""
        ...


class _PersonaFiles(VectorStore):
    missing = PersonaNotFoundError


class _TraitFiles(_PersonaFiles):
    prefix = TRAIT_PREFIX
    aliases = TRAIT_ALIASES


class _MonitorFiles(_PersonaFiles):
    word = "monitor"
    prefix = MONITOR_PREFIX


def check_own(name: str) -> None:
    """Raise VectorFileError for a direction that is not in a file of its own."""
    if name.startswith(MONITOR_PREFIX):
        raise VectorFileError(
            f'"{name}" is the direction of a monitor, which only `monitor` commands change. '
            "Its loudness is --strength."
        )


class PersonaManager:
    """Loads, saves, lists and blends the personas in one model's folder.

    Args:
        vectors_dir: the model's folder, `vectors/<model>/`; it need not exist yet.
        model_fingerprint: of the loaded model. Vectors made on another one are refused. None: no model is
            loaded, and nothing is checked.
        model_name: what to call the model in errors; the folder's name by default.
        sketch: of the loaded model's weights: with it, vectors made on a near copy of it are used.
        on_copy: told that, in one sentence, whenever such a file is read.
    """

    def __init__(
        self,
        vectors_dir: Path,
        model_fingerprint: str | None = None,
        model_name: str | None = None,
        sketch: ModelSketch | None = None,
        on_copy: Callable[[str], None] | None = None,
    ) -> None:
        self.vectors_dir = Path(vectors_dir)
        self.model_fingerprint = model_fingerprint
        self.model_name = model_name or self.vectors_dir.name
        files = (model_fingerprint, self.model_name, sketch, on_copy)
        self._persona_files = _PersonaFiles(self.personas_dir, *files)
        self._trait_files = _TraitFiles(self.traits_dir, *files)
        self._monitor_files = _MonitorFiles(self.vectors_dir / "monitors", *files)
        self._personas: dict[str, PersonaVector] = {}
        self._axes: Axes | None = None
        self._digests: dict[Path, str] = {}
        self._here: list[str] = []  # loaded for this run only: nothing could be written

    # --- what there is ---

    @property
    def personas_dir(self) -> Path:
        """The folder with one file per persona."""
        return self.vectors_dir / "personas"

    @property
    def traits_dir(self) -> Path:
        """The folder with one file per trait."""
        return self.vectors_dir / "traits"

    @property
    def axes(self) -> Axes | None:
        """The model's axes, read on first use; None while none were extracted.

        Raises:
            VectorFileError: the file is damaged or belongs to another model.
        """
        path = self.vectors_dir / AXES_FILE
        if self._axes is None and path.is_file():
            axes = Axes.load(path)
            self._persona_files.check(path, axes.metadata)
            self._axes, self._digests[path] = axes, sha256(path)
        return self._axes

    def save_axes(self, axes: Axes) -> None:
        """Write the model's axes and use them from now on."""
        path = self.vectors_dir / AXES_FILE
        self._persona_files.check(path, axes.metadata)
        axes.save(path, inside=self.vectors_dir)
        self._axes, self._digests[path] = axes, sha256(path)

    @property
    def roles(self) -> RoleMeans | None:
        """The means of roles, read again each time; None while there are none. Nobody speaks as a role.

        Raises:
            VectorFileError: the file is damaged or belongs to another model.
        """
        path = self.vectors_dir / ROLES_FILE
        if not path.is_file():
            return None
        roles = RoleMeans.load(path)
        self._persona_files.check(path, roles.metadata)
        return roles

    def save_roles(self, roles: RoleMeans) -> None:
        """Write the means of roles."""
        path = self.vectors_dir / ROLES_FILE
        self._persona_files.check(path, roles.metadata)
        roles.save(path, inside=self.vectors_dir)

    def path_of(self, name: str) -> Path:
        """Return the file of a persona (or, with a name like `trait:patience`, of a trait), there or not.

        Raises:
            WorkspaceError: the name is a path or has characters that names cannot have.
        """
        return self._files_of(name).path_of(name)

    def _files_of(self, name: str) -> VectorStore:
        if name.startswith(MONITOR_PREFIX):
            return self._monitor_files
        return self._trait_files if name.startswith(TRAIT_PREFIX) else self._persona_files

    def list_available(self) -> list[str]:
        """Return the names of all personas on the disk, sorted."""
        return self._persona_files.names()

    def usable(self) -> dict[str, PersonaVector]:
        """Return every persona on the disk that can be used, by name; a bad file must not hide the others."""
        found = {}
        for name in self.list_available():
            with suppress(VectorFileError):
                found[name] = self.get(name)
        return found

    def list_traits(self) -> list[str]:
        """Return the names of all traits on the disk, sorted, each with its prefix: `trait:patience`.

        Wherever a persona's name is taken, so is such a name: a trait is loaded, traced, blended and steered
        with like a persona.
        """
        return [f"{TRAIT_PREFIX}{name}" for name in self._trait_files.names()]

    def files(self) -> dict[str, Path]:
        """Return the files that steer and measure: `axes`, `personas/NAME` and `traits/NAME`, as far as there
        are any.
        """
        names = [*self.list_available(), *self.list_traits()]
        paths = filter(Path.is_file, [self.vectors_dir / AXES_FILE, *map(self.path_of, names)])
        return {path.relative_to(self.vectors_dir).with_suffix("").as_posix(): path for path in paths}

    def list_monitors(self) -> list[str]:
        """Return the names of all monitors' directions, sorted, each with its prefix: `monitor:default`."""
        return [f"{MONITOR_PREFIX}{name}" for name in self._monitor_files.names()]

    def has(self, name: str) -> bool:
        """Return whether there is a persona, trait or monitor's direction of this name."""
        return self._files_of(name).has(name)

    def get(self, name: str) -> PersonaVector:
        """Return a persona, loaded or not, reading its file the first time.

        Raises:
            PersonaNotFoundError: no persona has this name.
            VectorFileError: its file is damaged or belongs to another model.
        """
        try:
            path = self._files_of(name).find(name)
        except PersonaNotFoundError:
            self._personas.pop(name, None)
            raise
        if name not in self._personas:
            of_monitor = name.startswith(MONITOR_PREFIX)
            persona = monitor_direction(path, name) if of_monitor else PersonaVector.load(path)
            self._persona_files.check(path, persona.metadata)
            # The file's name is what the user sees and types; a renamed file is a renamed persona.
            self._personas[name] = replace(persona, name=name)
            self._digests[path] = sha256(path)
        return self._personas[name]

    def about(self, name: str) -> dict[str, Any]:
        """Return a persona's metadata, its calibration included, without reading its vectors.

        Raises:
            PersonaNotFoundError: no persona has this name.
            VectorFileError: its file is damaged or belongs to another model.
        """
        return self._files_of(name).about(name)

    def digest(self, name: str | None = None) -> str:
        """Return the SHA-256 of a persona's file as it was when it was read here; None = the axes' file.

        Raises:
            PersonaNotFoundError: no persona has this name.
            VectorFileError: the file is missing, damaged or belongs to another model.
        """
        if name is not None:
            self.get(name)
            return self._digests[self.path_of(name)]
        if self.axes is None:
            raise VectorFileError(f"There are no axes for {self.model_name}: run `persona-tui init`.")
        return self._digests[self.vectors_dir / AXES_FILE]

    def save(self, persona: PersonaVector) -> Path:
        """Write a persona to its file, replacing one of the same name, and return the path.

        Raises:
            VectorFileError: it is a monitor's direction, or was made on another model.
        """
        check_own(persona.name)
        path = self.path_of(persona.name)
        check_case(path)
        self._persona_files.check(path, persona.metadata)
        persona.save(path, inside=self.vectors_dir)
        self._personas[persona.name] = persona
        self._digests[path] = sha256(path)
        return path

    def delete(self, name: str) -> bool:
        """Remove a persona from disk and memory; return False if there is none. Ask the user before."""
        self.path_of(name)  # a name that cannot be one is refused before anything is forgotten
        check_own(name)
        self.unload(name)
        return self._files_of(name).delete(name)

    # --- what is loaded ---

    def list_loaded(self) -> list[str]:
        """Return the names of the loaded personas and traits that still exist, in the order of loading."""
        return list(dict.fromkeys([*self._kept(), *filter(self.has, self._here)]))

    def _kept(self) -> list[str]:
        """Return those that are loaded in later runs, too."""
        return [name for name in self._read_state() if self.has(name)]

    def load(self, name: str) -> bool:
        """Load a persona, now and in later runs; return True when it is loaded.

        Where nothing can be written, it is loaded for this run.

        Raises:
            PersonaNotFoundError: no persona has this name.
            VectorFileError: its file is damaged or belongs to another model.
        """
        self.get(name)
        try:
            self.keep_loaded(name)
        except WorkspaceError:
            self._here = list(dict.fromkeys([*self._here, name]))
        return True

    def keep_loaded(self, name: str) -> None:
        """Load a persona in later runs, too.

        Raises:
            PersonaNotFoundError, VectorFileError: see `load`.
            WorkspaceError: that cannot be written down.
        """
        self.get(name)
        if name not in self._kept():
            with change(self.vectors_dir, STATE_FILE):
                self._write_state(list(dict.fromkeys([*self._kept(), name])))

    def unload(self, name: str) -> bool:
        """Forget a loaded persona; return False if it was not loaded. Its file stays."""
        self._personas.pop(name, None)
        here = name in self._here
        self._here = [other for other in self._here if other != name]
        if name not in self._read_state():
            return here
        with change(self.vectors_dir, STATE_FILE):
            self._write_state([other for other in self._read_state() if other != name])
        return True

    # --- what is added to the residual stream ---

    def get_vector(self, name: str, safe: bool = True) -> dict[int, Tensor] | None:
        """Return a loaded persona's vectors at strength 1, layer to `[hidden]`; None if it is not loaded."""
        return self.get(name).direction(safe) if name in self.list_loaded() else None

    def get_composite(
        self,
        weights: Mapping[str, float],
        safe: bool = True,
        layers: Sequence[int] | None = None,
        guided: bool = False,
    ) -> dict[int, Tensor]:
        """Return a blend of personas at strength 1, layer to `[hidden]`; empty when nothing has weight.

        Personas need not be loaded. They are blended layer by layer over one band: direction of the weighted
        sum, size the weighted mean of their sizes. Personas that were calibrated for different layers, as in
        older files, are all spread over all of those layers where each has a vector (see
        `PersonaVector.direction`), so that each is heard at every layer of the blend. With `layers`, all of
        them are added there instead. `guided` says whether replies are written with the guide.

        Raises:
            PersonaNotFoundError: one of the names is unknown.
            PersonaTuiError: a weight is out of its range.
            VectorFileError: a persona was not extracted at one of `layers`.
        """
        for name, weight in weights.items():
            WEIGHT.check(f'the weight of "{name}"', weight)
        parts = {name: self.get(name) for name, by in weights.items() if by}
        if layers is None:
            layers = _common_layers(list(parts.values()))
        directions = [persona.direction(safe, layers, guided) for persona in parts.values()]
        amounts = [weights[name] for name in parts]
        places = sorted(directions[0]) if directions else []
        return {layer: blend([direction[layer] for direction in directions], amounts) for layer in places}

    # --- making one ---

    def create_from_description(
        self, description: str, name: str, extractor: PersonaExtractor, generator: PromptGenerator
    ) -> bool:
        """Make a persona from a description, save and load it; return True when that is done.

        The generator writes system prompts, the extractor turns them into vectors and calibrates them.
        Cancelled meanwhile, the persona stays, uncalibrated.

        Raises:
            PersonaTuiError: the name is taken.
            GenerationError: no system prompts could be made from the description.
        """
        if self.path_of(name).is_file():
            raise PersonaTuiError(
                f'A persona "{name}" already exists; delete it first or choose another name.'
            )
        prompts = generator.generate_persona_prompts(description, PROMPTS_PER_PERSONA)
        if not prompts:
            raise GenerationError(f"No system prompts could be made from the description of {name}.")
        persona = extractor.extract_persona(name, prompts, description=description, source="generated")
        self.save(persona)
        self.load(name)
        self.save(extractor.calibrated(persona))
        return True

    # --- the file that remembers ---

    def _read_state(self) -> list[str]:
        """Return the remembered names. A damaged file only loses a convenience, so it counts as empty."""
        try:
            state = json_value(read_plain(self.vectors_dir / STATE_FILE))
            names = state["loaded"]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def _write_state(self, names: list[str]) -> None:
        text = json.dumps({"loaded": names}, indent=2) + "\n"
        atomic_write_text(self.vectors_dir / STATE_FILE, text, inside=self.vectors_dir)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as `PersonaManager.digest` and transcripts have it."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _common_layers(personas: Sequence[PersonaVector]) -> list[int] | None:
    """Return where personas are blended; None if each is added at the same layers by itself."""
    own = {persona.steering_layers for persona in personas}
    if len(own) < 2:
        return None
    everywhere = set.intersection(*(set(persona.layers) for persona in personas))
    # Without a layer that all have, the first one's layers are asked for, and the error names the other.
    return sorted(everywhere & {layer for layers in own for layer in layers}) or list(
        personas[0].steering_layers
    )


def monitor_direction(path: Path, name: str) -> PersonaVector:
    """Return a monitor's direction as a persona of this name; positive strengths move towards what is safe.

    A monitor's file has the mean activations of safe and of dangerous messages at every layer. Their
    difference is a direction like a persona's. It is not calibrated, and stays in the monitor's file.

    Raises:
        VectorFileError: the file is missing, damaged, or no monitor with content vectors.
    """
    tensors, metadata = load_tensors(path)
    check_kind(path, metadata, "monitor")
    for position in ("message", "prompt_last"):
        stacks = [tensors.get(f"stack.content.{position}.{side}") for side in ("safe", "dangerous")]
        if stacks[0] is not None and stacks[1] is not None:
            safe, dangerous = stacks[0].float(), stacks[1].float()
            break
    else:
        raise VectorFileError(f"{path} has no content vectors to steer with: fit the monitor again.")
    depth = len(safe)
    # The middle of the depth, as for personas.
    band = [layer for layer in range(depth) if 0.3 * depth <= layer < 0.6 * depth] or [depth - 1]
    raw = safe - dangerous
    direction = PersonaVector(
        name,
        tuple(range(depth)),
        mean={RECIPE: safe},
        raw={RECIPE: raw},
        safe={RECIPE: raw.clone()},
        metadata={**metadata, "kind": "persona", "source": "monitor", "target_layers": band},
    )
    direction.metadata.update(default_gains(direction, band))
    return direction
