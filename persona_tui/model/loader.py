"""Finding a model and its tokenizer, and saying in one line why when that fails."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from persona_tui.core.errors import JobCancelled, ModelLoadError, nearest
from persona_tui.core.processes import launched, local_place
from persona_tui.model import sources
from persona_tui.model.architecture import find_blocks
from persona_tui.model.files import cached_folder, check_loadable
from persona_tui.model.gguf import unpack

SPREAD = "multi"  # the device name that spreads one model over all GPUs
ON_DISK = "disk"  # that of weights which stay there, for a model that something else runs

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_QUANTIZATIONS = ("none", "8bit", "4bit")
_T = TypeVar("_T")


def load(
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    quantization: str = "none",
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model for inference.

    Args:
        name: see `sources`: "starter", "tiny", a folder, a GGUF file, a model of Ollama's or on the hub.
        device: "auto" (the first of cuda, mps, cpu that is there), a torch device, or "multi" (all GPUs).
        dtype: "auto" (bfloat16 on cuda, else float32), "float32", "bfloat16" or "float16".
        quantization: "none", "8bit" or "4bit"; the last two need bitsandbytes and spread over all GPUs.
        trust_remote_code: whether Python code and pickled weights that come with the model may be used. The
            question is never put to the user: without it, both are refused.

    Raises:
        ModelLoadError: with the reason.
    """
    _be_quiet()
    location = where(name)
    target = _device(device)
    arguments = _arguments(target, _dtype(dtype, target), quantization)
    # With None, transformers would ask on standard input.
    trust: dict[str, Any] = {"trust_remote_code": bool(trust_remote_code)}
    folder = Path(location) if Path(location).is_dir() else cached_folder(location)
    if folder is None:
        _check_reachable(location, name)
    packed = None if folder is None else check_loadable(folder, name, trust_remote_code)
    tokenizer = _explained(lambda: AutoTokenizer.from_pretrained(location, **trust), name, "tokenizer")
    loaded: Any = _explained(
        lambda: AutoModelForCausalLM.from_pretrained(
            location,
            output_loading_info=True,
            use_safetensors=None if trust_remote_code else True,
            **trust,
            **arguments,
        ),
        name,
        "model" if packed is None else f"quantised with {packed}",
    )
    model, report = loaded
    _check_complete(name, report)
    if "device_map" not in arguments:
        model = _explained(lambda: model.to(target), name, "model")
    find_blocks(model)
    return model.eval().requires_grad_(False), tokenizer


def _be_quiet() -> None:
    """Progress bars and warnings on standard error would tear the screen apart."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    # transformers would have a server convert pickled weights that it finds on the hub.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"


def where(name: str) -> str:
    """Return the folder or hub name that a model name stands for; a GGUF file is unpacked on first use."""
    source = sources.resolve(name)
    if source.folder is None and source.gguf is not None:
        source = unpack(source, lambda done, total, note: None)
    return str(source.folder or source.name)


def _check_reachable(location: str, name: str) -> None:
    """Raise at once if the hub does not answer: transformers would ask for each file six times, in silence.

    What it does answer is left to transformers, whose errors say which file is missing.
    """
    try:
        HfApi().model_info(location, timeout=sources.HUB_PATIENCE)
    except (HfHubHTTPError, HFValidationError):
        return
    except (_hub_client().HTTPError, OSError) as error:
        raise ModelLoadError(_UNREACHABLE.format(name=name)) from error


def _hub_client() -> Any:
    """Return the library that the hub is asked with: httpx, or httpx2 where huggingface-hub is newer."""
    return import_module(type(get_session()).__module__.partition(".")[0])


def _device(device: str) -> str:
    if device in ("auto", "cuda") and torch.cuda.is_available():
        # Of several processes on a machine, each takes a GPU of its own.
        return f"cuda:{local_place() % torch.cuda.device_count()}" if launched() else "cuda"
    if device == "auto":
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if device in (SPREAD, ON_DISK):
        return device
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        known = ("auto", "cuda", "mps", "cpu", SPREAD)
        raise ModelLoadError(
            f'Unknown device "{device}"; choose {", ".join(known)} or cuda:N.{nearest(device, known)}'
        ) from error
    available: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if kind in available and not available[kind]():
        raise ModelLoadError(f"This machine (or its PyTorch) has no {kind} device: use --device auto or cpu.")
    return device


def _dtype(dtype: str, device: str) -> torch.dtype:
    if dtype == "auto":
        on_gpu = device.startswith("cuda") or (device in (SPREAD, ON_DISK) and torch.cuda.is_available())
        return torch.bfloat16 if on_gpu else torch.float32
    if dtype not in _DTYPES:
        raise ModelLoadError(
            f'Unknown dtype "{dtype}"; choose auto, {", ".join(_DTYPES)}.{nearest(dtype, _DTYPES)}'
        )
    return _DTYPES[dtype]


def _arguments(device: str, dtype: torch.dtype, quantization: str) -> dict[str, Any]:
    if quantization not in _QUANTIZATIONS:
        raise ModelLoadError(
            f'Unknown quantization "{quantization}"; choose {", ".join(_QUANTIZATIONS)}.'
            f"{nearest(quantization, _QUANTIZATIONS)}"
        )
    arguments: dict[str, Any] = {"dtype": dtype}
    if device == ON_DISK:
        _need("accelerate", "Leaving weights on the disk")
        return arguments | {"device_map": {"": ON_DISK}}
    if quantization != "none":
        _need("bitsandbytes", f"{quantization} quantization")
        arguments["quantization_config"] = _quantization_config(quantization, dtype)
    if quantization != "none" or device == SPREAD:
        _need("accelerate", "Using several GPUs or quantization")
        arguments["device_map"] = "auto" if device in (SPREAD, "cuda") else {"": device}
    return arguments


def _quantization_config(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    config: Callable[..., BitsAndBytesConfig] = BitsAndBytesConfig
    if quantization == "8bit":
        return config(load_in_8bit=True)
    return config(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
    )


def _need(package: str, purpose: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ModelLoadError(f"{purpose} needs {package}: pip install {package}.")


def _check_complete(name: str, report: Any) -> None:
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        raise ModelLoadError(
            f"The weights of {name} are incomplete: {len(missing)} tensors are missing "
            f"(for example {missing[0]})."
        )


def _explained(action: Callable[[], _T], name: str, what: str) -> _T:
    """Do one part of the loading; whatever goes wrong becomes a ModelLoadError."""
    try:
        return action()
    except (ModelLoadError, JobCancelled):
        raise
    except Exception as error:
        raise ModelLoadError(_reason(error, name, what)) from error


def _reason(error: Exception, name: str, what: str) -> str:
    causes = _chain(error)
    text = " ".join(str(cause) for cause in causes)
    for kinds, words, reason in _KNOWN_REASONS:
        if any(isinstance(cause, kinds) for cause in causes) or any(word in text for word in words):
            return reason.format(name=name, detail=in_one_line(error))
    if what == "tokenizer":
        return f"{name} has no readable tokenizer: {in_one_line(error)}"
    if what.startswith("quantised"):
        return f"{name} is {what}, and could not be loaded: {in_one_line(error)} Or use the original weights."
    return f"{name} could not be loaded: {in_one_line(error)}"


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and everything that led to it."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def in_one_line(error: BaseException) -> str:
    """Return what an error of a library says, all of it on one line, without its advice to load unsafely."""
    sentences = re.split(r"(?<=[.!?:])\s+", " ".join(str(error).split()))
    said = " ".join(each for each in sentences if each and not _UNSAFE_ADVICE.search(each))
    return said[:_LONGEST_REASON] if said else type(error).__name__


_LONGEST_REASON = 600
_UNSAFE_ADVICE = re.compile(
    r"trust_remote_code|weights_only|use_safetensors|allow_pickle|add_safe_globals|dangerous", re.IGNORECASE
)
_UNREACHABLE = "{name} is not on this machine and huggingface.co cannot be reached."
_Kinds = tuple[type[BaseException], ...]

# In this order: what matches first is what is told.
_KNOWN_REASONS: tuple[tuple[_Kinds, tuple[str, ...], str], ...] = (
    (
        (),
        ("ignore_mismatched_sizes",),
        "The weights of {name} have other shapes than its config.json says.",
    ),
    (
        (GatedRepoError,),
        ("gated repo",),
        "{name} is gated: accept its terms on huggingface.co, then log in with `hf auth login`.",
    ),
    (
        (RepositoryNotFoundError, HFValidationError),
        ("not a valid model identifier",),
        "There is no model {name}, neither a folder here nor a public one on huggingface.co.",
    ),
    (
        (torch.OutOfMemoryError, MemoryError),
        ("out of memory", "can't allocate memory"),
        "{name} does not fit into memory: try --quantization 4bit, a smaller model, or --device cpu.",
    ),
    (
        (),
        ("trust_remote_code", "custom code"),
        "{name} comes with its own Python code, which was not run: if you trust it, add "
        "--trust-remote-code, or set model.trust_remote_code to its name.",
    ),
    (
        (),
        ("does not appear to have a file named model.safetensors", "no file named model.safetensors"),
        "{name} has no weights as safetensors; pickled ones can run code: they need --trust-remote-code.",
    ),
    (
        (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError),
        ("couldn't connect", "We couldn't connect", "offline mode"),
        _UNREACHABLE,
    ),
    (
        (FileNotFoundError,),
        (),
        "{name} is incomplete, a file is missing: {detail}",
    ),
    (
        (),
        ("does not recognize this architecture", "Unrecognized configuration class", "Unrecognized model"),
        "{name} is not a causal language model that this version of transformers knows.",
    ),
)
