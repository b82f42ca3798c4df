"""evaluate and predict on several gloo processes: what one process gives, every image once, one voice."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from error_parts import assert_refused
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from PIL import Image
from processes import LIMIT_S, exit_codes, run_ranks
from sklearn.metrics import classification_report, confusion_matrix
from untrained_run import save_untrained_run

from imgrec import cli
from imgrec.distributed import heartbeat, process_group, worker_group, world
from imgrec.distributed.worker_group import WorkerGroup, contiguous_shares, share_rounds
from imgrec.inference.predictor import load

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")
BAD = (3, 4, 17)  # numbers of the images that cannot be read


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes: the number of threads may change the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained_run(tmp_path_factory.mktemp("run"), classes=CLASSES)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 images CLASS/NUMBER.png, which neither 2 nor 3 nor 8 divide, nor batches of 4; three of them are none."""
    root = tmp_path_factory.mktemp("images")
    made = np.random.default_rng(0)
    for number in range(23):
        file = root / CLASSES[number * 6 // 23] / f"{number:02d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(made.integers(0, 256, (9, 11), dtype=np.uint8)).save(file)
        if number in BAD:
            file.write_bytes(b"hello")
    return root


def on(size: int, *words: object) -> list[int]:
    """The exit codes of a command as so many processes, or as one."""
    argv = [*map(str, words), "device=cpu", "num_workers=0"]
    return [cli.main(argv)] if size == 1 else exit_codes(size, lambda rank: cli.main(argv))


# How a list is shared


@given(st.integers(0, 3000), st.integers(1, 40), st.integers(1, 9), st.integers(1, 100))
def test_every_place_once_in_the_batches_of_one_process(samples: int, batch: int, size: int, at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_group, "ITEMS_PER_MESSAGE", at_once)
        dealt = list(share_rounds(samples, batch, size))
    assert [place for parts in dealt for part in parts for place in part] == list(range(samples))
    for rank in range(size):
        mine = [place for parts in dealt for place in parts[rank]]
        batches = [mine[start : start + batch] for start in range(0, len(mine), batch)]
        assert all(one == list(range(one[0], min(one[0] + batch, samples))) and one[0] % batch == 0 for one in batches)
    assert all(len(part) <= max(batch, at_once) for parts in dealt for part in parts)


@given(st.integers(0, 3000), st.integers(1, 40), st.integers(1, 9))
def test_shares_are_as_even_as_whole_batches_go(samples: int, batch: int, size: int) -> None:
    counts = [-(-len(part) // batch) for part in contiguous_shares(samples, batch, size)]
    assert counts == [len(part) for part in np.array_split(np.arange(-(-samples // batch)), size)]


def test_what_is_scattered_and_gathered_is_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_group, "ITEMS_PER_MESSAGE", 4)

    def work(rank: int) -> list[Any]:
        with worker_group.worker_group(30.0) as group:
            mine, parts = group.scatter([str(number) for number in range(23)] if rank == 0 else [], 2)
            rows, rest = [], iter(mine)
            for part in parts:
                rows += group.gather([next(rest) for _ in range(part)])
        return [parts, rows]

    every = run_ranks(3, work)
    assert [len(parts) for parts, _ in every] == [2, 2, 2]  # rounds
    assert [sum(parts) for parts, _ in every] == [8, 8, 7]
    assert [rows for _, rows in every] == [[str(number) for number in range(23)], [], []]


# The commands


@pytest.mark.parametrize("several", slow_but(3, among=[2, 3, 8]))
def test_figures_are_those_of_one_process_and_sklearns(
    run: Path, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], several: int
) -> None:
    words = (f"ckpt={run}", f"folder={images}", "batch_size=2", "data.on_bad_image_eval=skip", "plot=none")
    found = {}
    for size in (1, several):
        assert on(size, "evaluate", *words, f"out={tmp_path}/{size}.json") == [0] * size
        said = capfd.readouterr()
        assert said.err == ""
        assert said.out.count("macro F1") == said.out.count("3 images could not be read") == said.out.count("figures in") == 1
        found[size] = json.loads((tmp_path / f"{size}.json").read_text())
        assert found[size]["processes"] == size
    loss = found[1]["figures"]["loss"]
    assert found[several]["figures"].pop("loss") == pytest.approx(loss, rel=1e-12)  # a sum in another order
    for same in ("unread_images", "device"):
        assert found[several][same] == found[1][same]
    del found[1]["figures"]["loss"]
    assert found[several]["figures"] == found[1]["figures"]
    files = [file for number, file in enumerate(sorted(images.glob("*/*"))) if number not in BAD]
    assert found[several]["unread_images"] == [str(file) for file in sorted(images.glob("*/*")) if file not in files]
    true, predicted = (
        [file.parent.name for file in files],
        [answer.class_name for answer in load(run, device="cpu").predict(files)],
    )
    theirs = classification_report(true, predicted, labels=CLASSES, output_dict=True, zero_division=0)
    assert np.array_equal(found[several]["figures"]["confusion"], confusion_matrix(true, predicted, labels=CLASSES))
    assert found[several]["figures"]["macro_f1"] == pytest.approx(theirs["macro avg"]["f1-score"], abs=1e-12)


@pytest.mark.slow
def test_predictions_are_those_of_one_process_byte_for_byte(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker_group, "ITEMS_PER_MESSAGE", 4)  # so that there are several rounds
    for size in (1, 2, 3, 8):
        assert on(size, "predict", f"ckpt={run}", f"files={images}", f"out={tmp_path}/{size}.csv", "batch_size=2") == [0] * size
        said = capfd.readouterr()
        assert said.out.count(f"23 files in {tmp_path}/{size}.csv; 3 of them could not be read") == 1
        assert said.out.count("cannot be read") == 3
        assert said.err == ""
    whole = (tmp_path / "1.csv").read_bytes()
    assert whole.count(b".png") == 23
    assert all((tmp_path / f"{size}.csv").read_bytes() == whole for size in (2, 3, 8))


@pytest.mark.slow
def test_fewer_images_than_processes(run: Path, images: Path, tmp_path: Path) -> None:
    for size in (1, 3):
        assert on(size, "predict", f"ckpt={run}", f"files={images}/ant/00.png", f"out={tmp_path}/{size}.csv") == [0] * size
        (tmp_path / "two").mkdir(exist_ok=True)
        for name in CLASSES[:2]:
            (tmp_path / "two" / name).mkdir(exist_ok=True)
            file = sorted((images / name).iterdir())[1]
            (tmp_path / "two" / name / file.name).write_bytes(file.read_bytes())
        words = (f"ckpt={run}", f"folder={tmp_path}/two", "batch_size=1", f"out={tmp_path}/{size}.json", "plot=none")
        assert on(size, "evaluate", *words) == [0] * size
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "3.csv").read_bytes()
    one, three = (json.loads((tmp_path / f"{size}.json").read_text())["figures"] for size in (1, 3))
    assert three == one | {"loss": pytest.approx(one["loss"], rel=1e-12)}


def test_python_measures_in_a_group_of_its_own(run: Path, images: Path) -> None:
    def work(rank: int) -> dict[str, Any]:
        if size > 1:
            process_group.connect(world.read_world(), timeout_s=LIMIT_S)
        recognizer = load(run, device="cpu")
        words = {"on_bad_image_eval": "skip"}
        return recognizer.evaluate(folder=str(images), data=words, batch_size=5, num_workers=0).to_dict()

    size = 1
    alone = work(0)
    size = 3
    assert run_ranks(size, work) == [alone | {"loss": pytest.approx(alone["loss"], rel=1e-12)}] * size


# What goes wrong is said once


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "ERROR_GRACE_S", 1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(
    ("words", "given"),
    [
        pytest.param(["predict", "ckpt={run}", "files={tmp}/*.gif"], "files={tmp}/*.gif", marks=pytest.mark.slow),
        (["evaluate", "ckpt={run}", "folder={tmp}/bad", "data.on_bad_image_eval=skip"], "none of 2 images"),
        # Each of two has one that cannot be read.
        pytest.param(["evaluate", "ckpt={run}", "folder={images}", "batch_size=8"], "{images}/", marks=pytest.mark.slow),
    ],
)
def test_bad_input_is_one_line(
    run: Path,
    images: Path,
    tmp_path: Path,
    words: list[str],
    given: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in BAD[:2]:
        (tmp_path / "bad" / "ant").mkdir(parents=True, exist_ok=True)
        (tmp_path / "bad" / "ant" / f"{number}.png").write_bytes(b"")
    names = {"run": run, "tmp": tmp_path, "images": images}
    codes = on(3, *(word.format(**names) for word in words))
    assert codes[0] == 2
    assert_refused(capfd.readouterr().err, given.format(**names))


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
def test_one_process_that_fails_ends_all(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imgrec.predict.find_checkpoint", Path)
    monkeypatch.chdir(tmp_path)
    whole = (run / "checkpoints" / "best.ckpt").read_bytes()

    def work(rank: int) -> int:
        file = tmp_path / f"{os.environ['RANK']}" / "best.ckpt"  # as on a machine that lacks it
        file.parent.mkdir()
        if os.environ["RANK"] != "1":
            file.write_bytes(whole)
        os.chdir(file.parent)
        return cli.main(["predict", "ckpt=best.ckpt", f"files={images}", f"out={tmp_path}/out.csv", "device=cpu"])

    assert exit_codes(3, work) == [2, 2, 2]
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "best.ckpt" in said
    assert f"(rank 1 on {os.uname().nodename})" in said
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.slow
def test_a_process_that_is_killed_is_named(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(heartbeat, "END_GRACE_S", 0.5)
    gather = WorkerGroup.gather

    def killed(self: WorkerGroup, mine: list[Any]) -> list[Any]:
        if self.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return gather(self, mine)

    monkeypatch.setattr(WorkerGroup, "gather", killed)
    assert on(3, "predict", f"ckpt={run}", f"files={images}", f"out={tmp_path}/out.csv", "batch_size=2") == [
        1,
        -signal.SIGKILL,
        1,
    ]
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"imgrec: rank 1 on {os.uname().nodename} (pid ")
    assert " died while " in said  # doing what it had last sent, a second ago
    assert said.endswith(". Start the same command again.\n")


def test_a_group_of_one_process_changes_nothing() -> None:
    alone = WorkerGroup()
    assert alone.all_gather("me") == ["me"]
    assert alone.scatter(["a", "b", "c"], 2) == (["a", "b", "c"], [3])
    assert alone.gather(["a"]) == ["a"]
