"""`make gpu` where it cannot run says why, in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("run.sh")


def assert_refused(tmp_path: Path, python: Path, *parts: str) -> None:
    settings = {"PYTHON": str(python), "OUT": str(tmp_path / "out"), "PYTHONPATH": ""}
    done = subprocess.run([SCRIPT], env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert all(part in line for part in ("make gpu: ", *parts)), line
    assert not (tmp_path / "out").exists()


def test_a_python_that_lacks_a_package_is_named_with_it(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without its packages
    python.chmod(0o755)
    assert_refused(tmp_path, python, "has no pytest", "PYTHON", "WHEELS=FOLDER")


@pytest.mark.slow
def test_a_machine_without_a_gpu_is_told_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("it has one")
    assert_refused(tmp_path, Path(sys.executable), f"torch {torch.__version__}", "no CUDA device")
