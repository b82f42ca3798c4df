"""imgrec.config.load and imgrec.fit: every form of settings means what it means on the command line; what fit returns."""

import csv
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from error_parts import raises_error
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import SMALL

import imgrec
from imgrec import config
from imgrec.config.checks import all_keys
from imgrec.config.compose import compose_config
from imgrec.config.options import group_names
from imgrec.distributed import signals
from imgrec.errors import ConfigError, ImgrecError, Stopped
from imgrec.training.callbacks.history import BestCheckpoint

KEYS = [key for key, _ in all_keys(compose_config("train", []))]
WORDS = ("data=mnist", "optim=sgd", "optim.lr=0.5", "epochs=3", "name=a,b", "sampling=weighted", "class_weights={cat: 2}")
DICTIONARY = {
    "data": "mnist",
    "optim": "sgd",
    "optim.lr": 0.5,
    "epochs": 3,
    "name": "a,b",
    "sampling": "weighted",
    "class_weights": {"cat": 2},
}


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (None, DICTIONARY),
        pytest.param(DICTIONARY, {}, marks=pytest.mark.slow),
        (WORDS[:3], {key: value for key, value in DICTIONARY.items() if not key.startswith(("data", "optim"))}),
        pytest.param(list(WORDS[:2]), DICTIONARY | {"optim": {"lr": np.float64(0.5)}}, marks=pytest.mark.slow),
        ({key: DICTIONARY[key] for key in ("optim", "data")}, {**DICTIONARY, "optim": {"lr": "0.5"}, "epochs": "3"}),
    ],
)
def test_every_form_is_the_same_run(words, keys):
    expected = config.load("train", WORDS)
    assert (expected.class_weights, expected.optim["lr"], expected.epochs) == ({"cat": 2}, 0.5, 3)
    assert config.load("train", words, **keys) == expected


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1))
@settings(max_examples=10)
def test_a_text_of_python_is_read_as_it_is_typed(text):
    assert config.load("train", runs_dir=text) == config.load("train", [f"runs_dir={text}"])


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=2)
VALUES = st.recursive(
    PLAIN | st.sampled_from([object(), np.float32(0.5), np.arange(2), torch.zeros(2), Path("a"), {1, 2}, range(2), 1j, int]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3) | st.sampled_from(KEYS), inner, max_size=2),
    max_leaves=3,
)


@given(st.dictionaries(st.sampled_from([*KEYS, *group_names()]) | st.text(max_size=3), VALUES, min_size=1, max_size=2))
@settings(max_examples=40)
def test_any_value_of_python_is_taken_or_refused_in_a_sentence(keys):
    with suppress(ImgrecError):
        config.load("train", keys)


def test_values_that_are_python_s_own(tmp_path):
    keys = {"trainer": {"devices": (0, 1)}, "optim": {"betas": np.array([0.8, 0.9])}, "seed": torch.tensor(3), "resume": False}
    run = config.load("train", tmp_path, runs_dir=Path("a=b"), id=5, weights=None, **keys)
    words = ["data=imagefolder", f"data.root={tmp_path}", "runs_dir=a=b", "id=5", "trainer.devices=[0,1]", "seed=3"]
    assert run == config.load("train", [*words, "optim.betas=[0.8,0.9]", "resume=false"])


@pytest.mark.parametrize(
    ("words", "keys", "parts"),
    [
        (5, {}, ("5", "a list of texts", "['data=mnist', 'epochs=3']")),
        ([0], {}, ("0", "a text", "epochs=3")),
        ({5: 1}, {}, ("5", "name of a key")),
        (None, {"epoch": 3}, ("'epoch=3'", "epochs")),
        (None, {"epochs": "three"}, ("epochs=three", "an integer", "30")),
        (None, {"epochs": [3]}, ("epochs=[3]", "an integer", "30")),
        (None, {"epochs": 16**5000}, (f"epochs=0x1{'0' * 197}", "less than 2^63")),  # str() refuses to write it
        (None, {"optim": {"lrr": 3}}, ("'optim.lrr=3'", "optim.lr")),
        (None, {"optim": {"lr": -1}}, ("optim.lr=-1.0", "more than 0")),
        (None, {"data": "mnst"}, ("data=mnst", "mnist")),
        (None, {"model": None}, ("'model=null'", "model=OPTION")),
        (None, {"model": torch.nn.Linear(1, 1)}, ("model=Linear", "a text", "_target_", "model='NAME'")),
        (None, {"sampling": "weighted", "class_weights": {"cat": "two"}}, ("class_weights.cat=two", "0 or more", "{cat: 2}")),
        (None, {"name": "a\0"}, ("'name=a\\x00'", "not allowed")),
        (["-m"], {"seed": 1}, ("-m", "no sweep")),
        (["epochs", "3"], {"seed": 1}, ("'epochs 3'", "imgrec train epochs=3")),
    ],
)
def test_a_mistake_is_a_sentence(words, keys, parts):
    with raises_error(ConfigError, *parts):
        config.load("train", words, **keys)
    with raises_error(ConfigError, *parts):
        imgrec.fit(words, **keys)


@pytest.mark.parametrize(("command", "hint"), [("evaluate", ()), ("trian", ("train",)), ("", ())])
def test_only_a_training_has_a_run_config(command, hint):
    with raises_error(ConfigError, repr(command), "RunConfig", *hint, "imgrec.config.load('train', ...)"):
        config.load(command, [])


def test_a_folder_of_yaml_is_a_path():
    with raises_error(ConfigError, "config_dir=5", "config_dir='FOLDER'"):
        config.load("train", config_dir=5)
    with raises_error(ConfigError, "--config-dir none", "no such folder"):
        config.load("train", config_dir=Path("none"))


def test_names_are_listed_and_a_wrong_one_is_a_sentence():
    assert {"config", "errors", "fit", "load"} < set(dir(imgrec))
    with pytest.raises(AttributeError, match=r"^imgrec has no laod\. Did you mean load\? .*fit"):
        _ = imgrec.laod


class Recorder(pl.Callback):
    def __init__(self):
        self.epochs, self.behind = 0, []

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs += 1
        assert {"train/loss", "val/loss"} <= trainer.callback_metrics.keys()
        self.behind = trainer.callbacks[trainer.callbacks.index(self) + 1 :]


class Stateful(Recorder):
    def state_dict(self):
        return {"epochs": self.epochs}


def test_a_run_from_keywords_its_callbacks_and_its_result(tmp_path):
    recorders = [Recorder(), Recorder()]
    keys = {"runs_dir": tmp_path, "name": "r", "epochs": 2}
    result = imgrec.fit(SMALL, callbacks=recorders, quiet=True, **keys)
    assert [recorder.epochs for recorder in recorders] == [2, 2]
    assert [type(callback) for callback in recorders[1].behind] == [BestCheckpoint]
    assert recorders[0].behind[0] is recorders[1]

    assert result.folder == tmp_path / "r/1"
    assert result == json.loads((result.folder / "result.json").read_text())
    with (result.folder / "metrics.csv").open() as file:
        row = list(csv.DictReader(file))[result["best"]["epoch"] - 1]
    assert result.metrics["test/accuracy"] == result["test"]["accuracy"]
    assert {name: float(row[name]) for name in ("train/loss", "val/accuracy")}.items() <= result.metrics.items()
    assert all(isinstance(value, float | int) for value in result.metrics.values())
    assert f"{tmp_path}/r/1" in repr(result)
    assert "test accuracy" in repr(result)

    predictor = result.load(device="cpu")
    assert predictor.evaluate().accuracy == result.metrics["test/accuracy"]
    assert all(part in repr(predictor) for part in (f"{tmp_path}/r/1", "LeNet", "3 classes", "16x16x3", "cpu"))
    again = imgrec.fit(SMALL, quiet=True, **keys, id="1")
    assert (again, again.folder) == (result, result.folder)


class Losses(pl.Callback):
    """Keeps the sum of all losses; asks for a stop at a step."""

    def __init__(self, stop=None):
        self.sum, self.steps, self.stop = 0.0, 0, stop

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.sum, self.steps = self.sum + float(outputs["loss"]), self.steps + 1
        if self.steps == self.stop:
            signals.request_stop("SIGTERM")

    def state_dict(self):
        return {"sum": self.sum, "steps": self.steps}

    def load_state_dict(self, state_dict):
        self.sum, self.steps = state_dict["sum"], state_dict["steps"]


def test_what_a_callback_keeps_is_restored_by_a_resumed_run(small):
    words = ("epochs=3", "trainer.limit_train_batches=4")
    whole, stopped, resumed = Losses(), Losses(stop=6), Losses()
    imgrec.fit(small("id=whole", *words), callbacks=whole, quiet=True)
    with pytest.raises(Stopped):
        imgrec.fit(small("id=a", *words), callbacks=stopped, quiet=True)
    imgrec.fit(small("id=a", *words), callbacks=resumed, quiet=True)
    assert 6 <= stopped.steps < resumed.steps == whole.steps == 12
    assert resumed.sum == whole.sum


@pytest.mark.parametrize(
    ("callbacks", "parts"),
    [
        ([Recorder], ("callbacks=[Recorder]", "pytorch_lightning.Callback", "callbacks=[Recorder()]")),
        (5, ("callbacks=[5]", "pytorch_lightning.Callback")),
        ([Stateful(), Stateful()], ("callbacks", "2", "state_key Stateful", "Leave one out")),
        ("erly", ("callbacks=erly", "default")),
        ({"em": {}}, ("'callbacks.em={}'", "callbacks.ema")),
    ],
)
def test_callbacks_that_cannot_be_called_are_refused(small, callbacks, parts):
    with raises_error(ConfigError, *parts):
        imgrec.fit([*SMALL, f"runs_dir={small().runs_dir}"], callbacks=callbacks, quiet=True)


def test_objects_do_not_reach_the_processes_that_a_run_starts(small):
    with raises_error(ConfigError, "callbacks=[Recorder]", "2", "trainer.devices=1"):
        imgrec.fit(small("trainer.devices=2"), callbacks=[Recorder()], quiet=True)


def test_a_run_config_has_its_keys_already(small):
    with raises_error(ConfigError, "epochs", "imgrec.config.load('train', ..., epochs=VALUE)"):
        imgrec.fit(small(), epochs=3)
