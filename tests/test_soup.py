"""imgrec soup: the mean of weights against torch's, the greedy choice by hand, and a run directory like any other."""

import json
import math
import os
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from error_parts import assert_refused, raises_error
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from PIL import Image
from small_run import SMALL
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn
from untrained_run import save_untrained_run

import imgrec
from imgrec import cli, config
from imgrec.config.load import load_config
from imgrec.config.schema import MovedData
from imgrec.errors import ConfigError
from imgrec.extend import extended_run
from imgrec.inference.checkpoint import load_checkpoint, read_checkpoint, weights_hash
from imgrec.locks import lock_folder
from imgrec.report.run_sections import curves_section
from imgrec.soup import SoupConfig, _begun, _output, _was_killed
from imgrec.train import fit
from imgrec.training.callbacks.batch_norm import measure_statistics, trained_norms
from imgrec.training.run_dir import check_continued
from imgrec.training.soup import Validated, WeightMean, Weights, greedy_soup
from imgrec.training.soup_validation import SoupValidation


def network(seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).to(dtype)
    net(torch.randn(8, 1, 8, 8, dtype=dtype))  # running statistics, and a count
    net.register_buffer("table", torch.tensor([3, 1, 2]))
    net.register_buffer("constant", torch.tensor([0.1, 1e-8, 3e30], dtype=dtype))
    return net


# The mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_is_torch_s(dtype: torch.dtype) -> None:
    nets = [network(seed, dtype) for seed in range(4)]
    averaged = AveragedModel(nets[0], use_buffers=True)
    mean = None
    for net in nets:
        averaged.update_parameters(net)
        mean = WeightMean.of(net.state_dict()) if mean is None else mean.including(net.state_dict())
    assert mean is not None
    found = mean.state()
    for name, tensor in averaged.module.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-7)
            assert found[name].dtype == dtype
    assert found["table"].tolist() == [3, 1, 2]
    assert found["1.num_batches_tracked"].item() == 1


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=9))
def test_the_mean_is_rounded_once_and_of_equal_weights_it_is_these(values: list[float]) -> None:
    first, *others = ({"w": torch.tensor([value, values[0]])} for value in values)
    mean = WeightMean.of(first)
    for state in others:
        mean = mean.including(state)
    exact = np.float32(math.fsum(values) / len(values))
    assert mean.state()["w"][0].item() == pytest.approx(exact, rel=2e-7, abs=1e-7 * max(map(abs, values)))
    assert mean.state()["w"][1].item() == values[0]


def test_batch_norm_is_measured_as_update_bn_does() -> None:
    ours, theirs = network(0), network(0)
    batches = [torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    update_bn(batches, theirs)
    measure_statistics(trained_norms(ours), ours, batches)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours[1], name), getattr(theirs[1], name), rtol=1e-5, atol=1e-6)  # type: ignore[index]


# The choice


def make(values: list[float], monitor: Any) -> tuple[list[tuple[int, bool]], Weights | None]:
    """Networks of one weight, whose score is that of the distance of the weight from 0."""
    sign = 1 if monitor == "val/loss" else -1

    def score(weight: float) -> float:
        return sign * abs(weight)

    soup = greedy_soup(
        [score(value) for value in values],
        lambda row: {"w": torch.tensor([values[row]], dtype=torch.float64)},
        lambda state: Validated({monitor: score(state["w"].item())}, state),
        monitor,
    )
    return [(each.row, each.kept) for each in soup.ingredients], soup.validated and soup.validated.state


@pytest.mark.parametrize("monitor", ["val/loss", "val/accuracy"])
def test_each_is_added_where_the_mean_does_not_become_worse(monitor: str) -> None:
    tried, state = make([4.0, 1.0, -3.0, -1.0], monitor)
    # 1, with -1: 0; with -3: -1, which is worse; with 4: 4/3, which is worse.
    assert tried == [(1, True), (3, True), (2, False), (0, False)]
    assert state is not None
    assert state["w"].item() == 0


def test_where_no_mean_helps_the_best_stays_alone() -> None:
    assert make([1.0, 2.0, 3.0], "val/loss") == ([(0, True), (1, False), (2, False)], None)
    assert make([1.0, 1.0], "val/accuracy")[0] == [(0, True), (1, True)]  # as good


def test_a_mean_whose_score_is_not_a_number_is_not_kept() -> None:
    states = [{"w": torch.tensor([float(row)])} for row in range(2)]
    soup = greedy_soup([0.5, 0.4], states.__getitem__, lambda state: Validated({"val/loss": math.nan}, state), "val/loss")
    assert [each.kept for each in soup.ingredients] == [True, False]


# The command


FAKE = ("class_0", "class_1", "class_2")
PLACE = (
    "trainer.limit_test_batches=1.0",
    "trainer.limit_val_batches=1.0",
    "monitor=val/loss",
    "data.test_samples=30",
    "data.val_share=0.5",
)


def write_run(folder: Path, change: float, *words: str, classes: tuple[str, ...] = FAKE, **result: Any) -> Path:
    """A finished run of one network whose last weights are changed by so much noise, the same for all."""
    words = (*SMALL, *PLACE, *words)
    save_untrained_run(folder, *words, tiny=(), classes=classes)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.load("train", list(words)).to_dict()))
    file = folder / "checkpoints/best.ckpt"
    content = read_checkpoint(file)
    head = list(content["state_dict"])[-2]
    noise = torch.randn(content["state_dict"][head].shape, generator=torch.Generator().manual_seed(5))
    content["state_dict"][head] = (content["state_dict"][head] * 64).round() / 64 + change * (noise * 64).round() / 64
    torch.save(content, file)
    best = {"epoch": 1, "val/loss": abs(change)} | result
    (folder / "result.json").write_text(
        json.dumps({"summary": "", "best": best, "last": best, "test": None, "train_seconds": 2.0})
    )
    return folder


def soup(folder: Path, *words: object) -> int:
    return cli.main(["soup", *map(str, words), f"out={folder}/soup/1", "device=cpu"])


def test_a_mean_is_a_run_like_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / f"r/{change}", change) for change in (-8.0, 8.0, 40.0)]
    plain = write_run(tmp_path / "r/plain", 0.0)
    assert soup(tmp_path, *runs) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines() if line.startswith(f"{tmp_path}/r/")]
    assert [(row[0], row[-1]) for row in rows[:3]] == [
        (str(run), kept) for run, kept in zip(runs, ("yes", "yes", "no"), strict=True)
    ]
    assert "mean of 2 of 3 runs" in said
    out = tmp_path / "soup/1"
    torch.testing.assert_close(
        *(read_checkpoint(run)["state_dict"] for run in (out, plain)), rtol=0, atol=0
    )  # the noise cancels out
    result = json.loads((out / "result.json").read_text())
    assert result["soup"] == read_checkpoint(out)["imgrec"]["soup"]
    first, second, third = result["soup"]["ingredients"]
    assert first["alone"] > second["mean"] < third["mean"]
    assert second["mean"] == pytest.approx(result["best"]["val/loss"])
    assert first["weights"] == weights_hash(read_checkpoint(runs[0]))
    assert result["train_seconds"] == 6
    assert result["test"]["count"] == 30
    predictor = imgrec.load(out, device="cpu")
    assert predictor.evaluate("test").confusion == result["test"]["confusion"]
    assert predictor.temperature == result["calibration"]["temperature"] != 1
    stored = yaml.safe_load((out / "config.yaml").read_text())
    assert (stored["name"], stored["id"], stored["soup"]) == ("soup", "1", [str(run) for run in runs[:2]])
    with raises_error(ConfigError, f"continue_from={out}", "mean of runs", f"weights={out}"):
        check_continued(replace(load_config("train", []), continue_from=str(out)))


@pytest.mark.slow
@pytest.mark.parametrize("named", [False, True], ids=["by number", "by name"])
def test_of_two_soups_at_once_the_later_takes_the_next_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], named: bool
) -> None:
    runs = [write_run(tmp_path / f"r/{change}", change) for change in (-8.0, 8.0)]

    def choose(*arguments: Any) -> Any:
        (tmp_path / "r_soup/1").mkdir(parents=True)
        (tmp_path / "r_soup/1/result.json").touch()
        return greedy_soup(*arguments)

    monkeypatch.setattr("imgrec.training.soup.greedy_soup", choose)
    words = [f"out={tmp_path}/r_soup/1"] if named else []
    assert cli.main(["soup", *map(str, runs), *words, "device=cpu"]) == (2 if named else 0)
    if named:
        assert_refused(capsys.readouterr().err, f"out={tmp_path}/r_soup/1", "exists")
    else:
        assert load_checkpoint(tmp_path / "r_soup/2").classes
    assert os.listdir(tmp_path / "r_soup/1") == ["result.json"]


@pytest.mark.parametrize(("monitor", "alone", "mean"), [("val/accuracy", "97.92%", "98.61%"), ("val/loss", "0.9792", "0.9861")])
def test_the_report_writes_its_figures_as_the_command_does(monitor: str, alone: str, mean: str) -> None:
    rows = [{"run": f"r/{row}", "alone": 0.9792, "mean": [None, 0.9861][row], "kept": True} for row in range(2)]
    said = curves_section(SimpleNamespace(result={"soup": {"monitor": monitor, "ingredients": rows}})).html  # type: ignore[arg-type]
    assert f'r/0</th><td class="n">{alone}</td><td class="n">-</td>' in said
    assert f'r/1</th><td class="n">{alone}</td><td class="n">{mean}</td>' in said


@pytest.mark.slow
def test_a_run_that_changes_meanwhile_is_not_averaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / f"r/{change}", change) for change in (-8.0, 8.0)]

    def choose(*arguments: Any) -> Any:
        write_run(runs[1], 7.0)  # after its weights alone were validated
        return greedy_soup(*arguments)

    monkeypatch.setattr("imgrec.training.soup.greedy_soup", choose)
    assert soup(tmp_path, *runs) == 2
    assert_refused(capsys.readouterr().err, str(runs[1]), "changed", "same command again")
    assert not (tmp_path / "soup/1").exists()


@pytest.mark.slow
def test_where_the_best_is_better_alone_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / f"r/{change}", change) for change in (0.0, 60.0)]
    assert soup(tmp_path, *runs) == 0
    said = capsys.readouterr().out
    assert f"{runs[0]} alone is better" in said.replace("\n", " ")
    assert not (tmp_path / "soup").exists()


@pytest.mark.slow
def test_a_mean_of_extensions_keeps_the_old_logits(tmp_path: Path) -> None:
    """Norms that were frozen are not measured anew."""
    small = [word for word in SMALL if not word.startswith(("trainer.limit", "model="))]
    old = fit([*small, "model=resnet", "report=false", f"runs_dir={tmp_path}", "name=old", "id=1"], quiet=True).folder
    new = tmp_path / "new/elk"
    new.mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (16, 16), (20 * number, 255, 0)).save(new / f"{number}.png")
    words = [str(old), f"data.root={new.parent}", "epochs=2", "batch_size=8", "callbacks.pictures=null", "report=false"]
    words += [f"runs_dir={tmp_path}", "name=more", "logger=none", "trainer.accelerator=cpu", "trainer.devices=1"]
    runs = [fit(extended_run([*words, f"seed={seed}"]), quiet=True).folder for seed in (1, 2)]
    with closing(SoupValidation(load_checkpoint(runs[0]), {}, device="cpu", num_workers=0, norm_images=64)) as validation:
        mean = WeightMean.of(read_checkpoint(runs[0])["state_dict"]).including(read_checkpoint(runs[1])["state_dict"])
        state = validation.mean(mean.state()).state
    net = load_checkpoint(runs[0]).network().eval()
    net.load_state_dict({name.removeprefix("net."): tensor for name, tensor in state.items()})
    images = torch.randn(6, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(net(images)[:, :3], load_checkpoint(old).network().eval()(images))


REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "network": (("model.activation=tanh",), ("model.activation=tanh", "relu")),
    "preprocessing": (("data.mean=[0.1,0.2,0.3]",), ("data.mean=[0.1,0.2,0.3]",)),
    "split": (("data.split_seed=4",), ("data.split_seed=4", "0")),
    "monitor": (("monitor=val/accuracy",), ("monitor",)),
}


@pytest.mark.parametrize("case", slow_but("network", among=REFUSED))
def test_other_runs_are_refused_by_their_first_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    words, parts = REFUSED[case]
    one, other = write_run(tmp_path / "r/1", 0.0), write_run(tmp_path / "r/2", 1.0, *words)
    assert soup(tmp_path, one, other) == 2
    given = "monitor=null" if case == "monitor" else f"runs={other}"
    assert_refused(capsys.readouterr().err, given, *parts)
    assert not (tmp_path / "soup").exists()


def test_what_a_killed_soup_left_is_written_anew_and_nothing_else(tmp_path: Path) -> None:
    killed = tmp_path / "soup/1"
    for files, ours in (
        ({"config.yaml": "soup: [a, b]"}, True),
        ({"config.yaml": "soup: [a, b]", "result.json": "{}"}, False),
        ({"config.yaml": "seed: 1"}, False),
        ({"photo.jpg": ""}, False),
        ({".lock": "", "config.yaml.unfinished": "so"}, True),
    ):
        killed.mkdir(parents=True)
        for name, content in files.items():
            (killed / name).write_text(content)
        assert _was_killed(killed) == ours, files
        if ours:
            with lock_folder(killed):  # another process writes it
                assert not _was_killed(killed)
            if "config.yaml" in files:
                (killed / "checkpoints").mkdir()
            with _begun(killed, {"soup": []}):
                assert sorted(os.listdir(killed)) == [".lock", "config.yaml"]
            with pytest.raises(FileExistsError), _begun(killed.parent, {}):
                pass
        shutil.rmtree(killed)
    with pytest.raises(ZeroDivisionError), _begun(killed, {}):
        raise ZeroDivisionError
    assert not killed.exists()
    (tmp_path / "r_soup/4").mkdir(parents=True)
    moved = MovedData(root=None, file=None)
    config = SoupConfig(runs=None, out=None, monitor=None, norm_images=0, data=moved, num_workers=0, device="cpu")
    assert _output(config, tmp_path / "r/7") == tmp_path / "r_soup/4"
    (tmp_path / "r_soup/4/result.json").touch()
    assert _output(config, tmp_path / "r/7") == tmp_path / "r_soup/5"


def test_what_is_no_soup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_run(tmp_path / "r/1", 0.0)
    unfinished = write_run(tmp_path / "r/2", 0.0)
    (unfinished / "result.json").unlink()
    (tmp_path / "soup/1").mkdir(parents=True)
    (tmp_path / "soup/1/notes.txt").touch()
    other = write_run(tmp_path / "r/3", 0.0, classes=("class_0", "class_1", "cat"))
    for words, parts in (
        ([], ("runs=null", "imgrec soup runs/NAME/1 runs/NAME/2")),
        ([one], (f"runs={one}", "two")),
        ([one, f"{one}/"], (f"runs={one}", "twice")),
        ([one, unfinished], (f"runs={unfinished}", "not finished")),
        ([one, other], (f"out={tmp_path}/soup/1", "out=RUNS_DIR/NAME/ID")),
        ([one, other, f"out={tmp_path}/new/1"], (f"runs={other}", "cat")),
        ([one, other, "monitor=val/macro_f1"], ("monitor=val/macro_f1", "monitor=val/accuracy")),
    ):
        assert (
            soup(tmp_path, *words) == 2
            if len(words) < 3 or "out=" not in str(words[-1])
            else cli.main(["soup", *map(str, words)]) == 2
        )
        assert_refused(capsys.readouterr().err, *parts)


@pytest.mark.slow
def test_the_mean_of_runs_from_one_network_is_not_worse_on_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["model=resnet", "optim=adam", "logger=none", "report=false", "trainer.accelerator=cpu", "callbacks.pictures=null"]
    fit(config.load("train", [*words, "epochs=4", "name=start", "id=1"]), quiet=True)
    for seed in (1, 2, 3):
        tuned = ["weights=runs/start/1", f"seed={seed}", "epochs=3", "name=tuned", f"id={seed}"]
        fit(config.load("train", [*words, *tuned]), quiet=True)
    assert cli.main(["soup", *(f"runs/tuned/{seed}" for seed in (1, 2, 3)), "device=cpu"]) == 0
    out = Path("runs/tuned_soup/1")
    result = json.loads((out / "result.json").read_text())
    best = max(row["alone"] for row in result["soup"]["ingredients"])
    for seed in (1, 2, 3):
        stored = json.loads(Path(f"runs/tuned/{seed}/result.json").read_text())["best"]["val/accuracy"]
        (row,) = (row for row in result["soup"]["ingredients"] if row["run"] == f"runs/tuned/{seed}")
        assert row["alone"] == pytest.approx(stored)
    found = imgrec.load(out, device="cpu").evaluate("val").accuracy
    assert found == pytest.approx(result["best"]["val/accuracy"])
    assert found >= best
    assert load_checkpoint(out).run.id == "1"
    assert cli.main(["compare", "runs/tuned/1", str(out), "plot=none"]) == 0
    assert "soup" in capsys.readouterr().out
    assert cli.main(["report", str(out)]) == 0
    assert "The weights are the mean of" in (out / "report.html").read_text()
    assert "More epochs" not in (out / "report.html").read_text()
