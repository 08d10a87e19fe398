"""The benchmarks of speed, growth and scaling run, with little to do. What they find is not judged here."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]


def run(script: str, *arguments: str) -> str:
    """A benchmark's standard output."""
    command = [sys.executable, f"benchmarks/{script}.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", ["peers", "growth", "scaling", "two_at_once"])
def test_help_says_what_it_does(script: str) -> None:
    assert f"python benchmarks/{script}.py" in run(script, "--help")


def test_scaling_says_that_it_is_computed() -> None:
    text = run("scaling", "--batch", "32")
    assert text.startswith("Computed, not measured.")
    models = [line.split(" ")[1] for line in text.splitlines() if line.startswith("| ")]
    assert models == ["model", "---", "7B", "7B", "14B", "14B", "70B", "70B"]


def test_scaling_takes_a_measured_speed() -> None:
    text = run("scaling", "--measured", "7b=1000", "--batch", "32")
    line = next(line for line in text.splitlines() if line.startswith("| 7B"))
    assert "| 1,000 |" in line


@pytest.mark.timeout(600)
def test_peers_compares_and_lists_the_aims(tmp_path: Path) -> None:
    report = tmp_path / "peers.md"
    options = ["--here", "--quick", "--shape", "tiny", "--only", "texts", "generating", "added", "streams"]
    run("peers", *options, "-o", str(report))
    text = report.read_text(encoding="utf-8")
    assert "| two passes, equal batch |" in text
    assert "| steering and capping add to decoding | tiny |" in text
    same = next(line for line in text.splitlines() if "same greedy responses" in line)
    assert float(same.rstrip(".").rpartition(" ")[2]) > 0.999


@pytest.mark.timeout(600)
def test_growth_fits_exponents_and_draws_curves(tmp_path: Path) -> None:
    plot = tmp_path / "growth.svg"
    text = run("growth", "--quick", "--only", "prompts", "--plot", str(plot))
    assert "exponent" in text
    panels = ElementTree.parse(plot).getroot().findall("{http://www.w3.org/2000/svg}g")
    assert len(panels) == 2  # time and memory
