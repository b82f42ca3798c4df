"""The built wheel, installed into a folder of its own and used from another one: nothing of the checkout is left to lean on."""

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from processes import run_command
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[1]
QUICK = (
    "epochs=1",
    "trainer.limit_train_batches=4",
    "model=lenet",
    "data.image_size=12",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools", minversion="77", reason="builds the wheel, as pyproject.toml says")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("imgrec", "conf", "launch"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", built, source)
    (file,) = built.iterdir()
    return file


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--target", folder, wheel)
    return folder


def pip(*words: object) -> None:
    done = run_command(sys.executable, "-m", "pip", "--disable-pip-version-check", *words)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def imgrec(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """imgrec("train", ...) runs the installed command in a folder that has nothing to do with the checkout, and returns its output."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("IMGREC_", "SLURM_"))}

    def run(*words: object, program: tuple[object, ...] = (site / "bin" / "imgrec",)) -> str:
        done: subprocess.CompletedProcess[str] = run_command(
            *program, *words, cwd=elsewhere, env=environment | {"PYTHONPATH": str(site)}
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    return run


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    expected = {str(file.relative_to(ROOT)) for file in (ROOT / "imgrec").rglob("*") if file.suffix in (".py", ".js")}
    expected |= {f"imgrec/conf/{file.relative_to(ROOT / 'conf')}" for file in (ROOT / "conf").rglob("*.yaml")}
    expected |= {"imgrec/py.typed", "imgrec/launch/slurm.sbatch"}
    with zipfile.ZipFile(wheel) as records:
        held = {name for name in records.namelist() if ".dist-info/" not in name}
    assert held == expected


def test_it_is_the_installed_package_that_runs(imgrec: Callable[..., str], site: Path) -> None:
    code = "import imgrec; from imgrec.config.options import conf_dir; print(imgrec.__file__, conf_dir(), sep='\\n')"
    said = imgrec("-c", code, program=(sys.executable,))
    assert said.splitlines() == [str(site / "imgrec/__init__.py"), str(site / "imgrec/conf")]


def test_a_run_is_trained_evaluated_and_used(imgrec: Callable[..., str], tmp_path: Path) -> None:
    trained = imgrec("-m", "imgrec.train", *QUICK, f"runs_dir={tmp_path}", "name=digits", "id=1", program=(sys.executable,))
    assert "test accuracy" in trained
    folder = tmp_path / "digits/1"
    assert json.loads((folder / "result.json").read_text())["last"]["step"] == 4

    imgrec("evaluate", f"ckpt={folder}", "device=cpu", f"out={tmp_path}/figures.json", "plot=none")
    assert json.loads((tmp_path / "figures.json").read_text())["figures"]["count"] == 360

    pictures = load_digits().images[:3]
    for number, picture in enumerate(pictures):
        Image.fromarray((picture * 15).astype("uint8")).save(tmp_path / f"{number}.png")
    imgrec("predict", f"ckpt={folder}", f"files={tmp_path}/*.png", f"out={tmp_path}/predicted.csv", "device=cpu")
    with (tmp_path / "predicted.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["path"]).name for row in rows] == ["0.png", "1.png", "2.png"]


def test_a_job_is_shown_with_the_installed_script(imgrec: Callable[..., str], site: Path) -> None:
    said = imgrec("slurm", "dry_run=true", "--", "model=lenet", "data.image_size=12")
    assert str(site / "imgrec/launch/slurm.sbatch") in said


def test_help_lists_the_installed_options(imgrec: Callable[..., str]) -> None:
    said = imgrec("train", "--help")
    assert all(
        option.stem in said.split() or f"*{option.stem}" in said.split() for option in (ROOT / "conf/model").glob("*.yaml")
    )
