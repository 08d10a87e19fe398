"""The command that serves a workspace's personas with vLLM."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path

from persona_tui.core.config import Settings
from persona_tui.core.errors import ModelLoadError
from persona_tui.vllm.bank import check_unguarded
from persona_tui.vllm.wire import KEY, LEND, MODEL, WORKER, WORKSPACE

_OLDER = "vllm.entrypoints.openai.api_server"


def command(
    settings: Settings,
    slug: str,
    host: str,
    port: int,
    rows: int,
    more: Sequence[str] = (),
    lent: bool = False,
) -> list[str]:
    """Return the words of `vllm serve` for a model and its settings.

    Args:
        settings: with the model's name.
        slug: what its vectors lie under, and what clients call it.
        host: the address to listen on.
        port: the port.
        rows: replies at a time.
        more: further words for vLLM.
        lent: whether engines on other machines may drive it.

    Raises:
        ModelLoadError: vLLM is not installed, or there is no such model.
        ConfigError: the settings ask for a guard.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ModelLoadError("--engine vllm needs vLLM: pip install 'persona-tui[vllm]'.")
    from persona_tui.model import loader

    if settings.model.quantization != "none":
        raise ModelLoadError("vLLM takes no --quantization: give it a model that is quantised already.")
    check_unguarded(settings)
    chosen = settings.vllm
    words = {
        "served-model-name": slug,
        "worker-extension-cls": WORKER,
        "host": host,
        "port": port,
        "max-num-seqs": rows,
        "dtype": settings.model.dtype,
        "tensor-parallel-size": chosen.tensor_parallel,
        "pipeline-parallel-size": chosen.pipeline_parallel,
        "gpu-memory-utilization": chosen.memory,
    }
    if chosen.context is not None:
        words["max-model-len"] = chosen.context
    flags = [f"--{name}={value}" for name, value in words.items()]
    flags += ["--enforce-eager"] if chosen.eager else []
    flags += ["--no-async-scheduling"] if lent else []  # else the token that ends a reply is summed up, too
    flags += ["--trust-remote-code"] if settings.model.trust_remote_code == settings.model.name else []
    return [sys.executable, "-m", *_server(), loader.where(settings.model.name), *flags, *more]


def _server() -> list[str]:
    """Return the module that serves, up to the model. The builds for CPUs have another name, which `vllm
    serve` does not find.
    """
    found = packages_distributions().get("vllm", [])
    return ["vllm.entrypoints.cli.main", "serve"] if "vllm" in found else [_OLDER, "--model"]


def environment(
    workspace: Path, model: str, api_key: str | None, given: Mapping[str, str], lent: bool = False
) -> dict[str, str]:
    """Return the environment of `vllm serve`, made of the present one."""
    plugins = [each for each in given.get("VLLM_PLUGINS", "").split(",") if each and each != KEY]
    own = {
        WORKSPACE: str(workspace),
        MODEL: model,
        LEND: "1" if lent else "0",
        "VLLM_PLUGINS": ",".join([*plugins, KEY]),
    }
    if api_key is not None:
        own["VLLM_API_KEY"] = api_key
    return {"VLLM_NO_USAGE_STATS": "1", **given, **own}


def serve(words: Sequence[str], variables: Mapping[str, str]) -> None:
    """Become `vllm serve`."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(words[0], list(words), dict(variables))
