"""CONTRIBUTING's examples, as they stand there: added to a copy of the package, they train, and no test has to be edited for them."""

import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import run_command

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())
OPTIONS = [Path(name) for name, _ in BLOCKS if name.startswith("conf/")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The package, conf/ and the tests of the config, with every block in the file that it names."""
    folder = tmp_path_factory.mktemp("checkout")
    for part in ("imgrec", "conf", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name, text in BLOCKS:
        file = folder / name
        before = f"{file.read_text()}\n\n" if file.exists() else ""
        file.write_text(before + text)
    arrays = {"classes": np.array(["a", "b"])}
    for split, count in (("train", 40), ("test", 8)):
        labels = np.arange(count) % 2
        arrays |= {
            f"{split}_labels": labels,
            f"{split}_images": (labels[:, None, None] * np.full((16, 16), 200)).astype(np.uint8),
        }
    np.savez(folder / "letters.npz", **arrays)
    return folder


def python(folder, *words):
    return run_command(sys.executable, *words, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)})


def test_every_block_names_its_file():
    assert len(BLOCKS) == len(re.findall(r"^```(?:python|yaml)$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE))
    assert {option.parts[1] for option in OPTIONS} == {"model", "data", "loss", "optim", "scheduler", "augment"}


@pytest.mark.slow
def test_the_examples_train_together(checkout):
    """Two colours that a mean over the picture tells apart."""
    chosen = [f"{option.parts[1]}={option.stem}" for option in OPTIONS]
    words = [*chosen, "data.root=.", "optim.lr=0.05", "epochs=20", "logger=none", "trainer.accelerator=cpu", "trainer.devices=1"]
    done = python(checkout, "-m", "imgrec.train", *words)
    assert done.returncode == 0, done.stderr
    assert "test accuracy 100.00%" in done.stdout


@pytest.mark.slow
def test_no_test_needs_to_be_edited_for_them(checkout):
    """From the copy: the tests that name one of the examples by glob, and those over whole tables."""
    names = " or ".join(option.stem for option in OPTIONS)
    files = [f"tests/test_{name}.py" for name in ("every_config", "config", "help", "bad_input", "optimizer", "augment")]
    chosen = ("-k", f"{names} or left_over or lists_its_options", "-rA", "-p", "no:cacheprovider")
    done = python(checkout, "-m", "pytest", *chosen, *files)
    assert done.returncode == 0, done.stdout[-3000:]
    for option in OPTIONS:
        assert re.search(rf"^PASSED .*\[{option.parts[1]}/{option.stem}\]$", done.stdout, re.MULTILINE)  # its form
        assert re.search(rf"^PASSED .*two_steps\[.*\b{option.parts[1]}={option.stem}\b.*\]$", done.stdout, re.MULTILINE)
