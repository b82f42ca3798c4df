"""At its end a training fits a temperature on its validation images, stores it, and predict uses it."""

import csv
import json

import numpy as np
import pytest
import torch
from error_parts import raises_error
from marks import slow_but
from PIL import Image
from processes import exit_codes
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from untrained_run import TINY

from imgrec import cli, config
from imgrec.analysis.validation_record import ValidationRecord
from imgrec.config.instantiate import instantiate
from imgrec.errors import ConfigError
from imgrec.inference.checkpoint import load_checkpoint, weights_hash
from imgrec.inference.device import inference
from imgrec.inference.predictor import load
from imgrec.train import fit
from imgrec.training.calibrate import fit_calibration
from imgrec.training.checkpoint import write_checkpoint

SHORT = ("epochs=1", "logger=none", "trainer.accelerator=cpu", "trainer.devices=1", "name=run", "id=1")


def settings(folder, *words):
    return config.load("train", [*TINY, *SHORT, f"runs_dir={folder}", *words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, its result, and its validation images."""
    run = settings(tmp_path_factory.mktemp("runs"), "trainer.limit_train_batches=8", "optim.lr=0.03")
    return run, fit(run, quiet=True), instantiate(run.data.to_node()).split("val")


def logits_of(predictor, images):
    with inference(predictor.device, predictor.precision):
        return predictor.logits(images).numpy()


def test_the_temperature_and_the_record_are_those_of_the_validation_images(trained):
    _, result, images = trained
    predictor = load(result.folder, device="cpu")
    stored = predictor.checkpoint.calibration
    logits = logits_of(predictor, images.images).astype(np.float64)

    def loss(temperature):
        return -log_softmax(logits / temperature, axis=1)[np.arange(len(logits)), images.labels].mean()

    least = minimize_scalar(loss, bounds=(0.02, 50), options={"xatol": 1e-10})
    assert stored.temperature == pytest.approx(least.x, rel=1e-4)
    assert (stored.log_loss_before, stored.log_loss_after) == pytest.approx((loss(1), least.fun), rel=1e-6)
    assert stored.log_loss_after < stored.log_loss_before
    assert stored.images == len(images) == 144
    expected = ValidationRecord.of(predictor.probabilities(images.images).numpy(), images.labels)
    for name, array in expected.to_arrays().items():
        assert stored.validation.to_arrays()[name] == pytest.approx(array, abs=1e-5), name
    assert result["calibration"]["temperature"] == stored.temperature
    assert weights_hash(predictor.checkpoint.content) == result["weights"]["test"]["sha256"] == stored.weights


def test_predictions_have_the_temperature_unless_it_is_switched_off(trained, tmp_path, monkeypatch):
    _, result, images = trained
    predictor, plain = load(result.folder, device="cpu"), load(result.folder, device="cpu", calibrated=False)
    logits, temperature = logits_of(predictor, images.images), predictor.checkpoint.calibration.temperature
    for network, factor in ((predictor, temperature), (plain, 1)):
        assert network.probabilities(images.images).numpy() == pytest.approx(softmax(logits / factor, axis=1), abs=1e-6)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(images.images[0, 0].numpy()).save("a.png")
    for word, network in (("calibrated=true", predictor), ("calibrated=false", plain)):
        assert cli.main(["predict", f"{result.folder}", "a.png", word, "device=cpu"]) == 0
        with open("predictions.csv", newline="") as file:
            (row,) = csv.DictReader(file)
        (answer,) = network.predict("a.png")
        assert (row["class"], float(row["probability"])) == (answer.class_name, pytest.approx(answer.probability, rel=1e-5))
    with raises_error(ConfigError, "calibrated=no", "true or false"):
        load(result.folder, calibrated="no")


def test_evaluate_says_what_the_training_said_and_draws_it(trained, capsys):
    _, result, _ = trained
    assert cli.main(["evaluate", f"{result.folder}", "device=cpu", "num_workers=0"]) == 0
    said = capsys.readouterr().out
    found = json.loads((result.folder / "evaluate_test.json").read_text())
    assert found["calibration"] == result["calibration"]["test"]
    assert found["figures"]["confusion"] == result["test"]["confusion"]
    before, after = (found["calibration"][name]["equal_width"] for name in ("before", "after"))
    assert f"calibration error {before['calibration_error']:.1%} (" in said
    assert f", {after['calibration_error']:.1%} with temperature {result['calibration']['temperature']:.2f}\n" in said
    assert f"reliability diagram in {result.folder / 'evaluate_test_reliability.png'}\n" in said
    with Image.open(result.folder / "evaluate_test_reliability.png") as picture:
        assert picture.info["Software"] == "imgrec"


@pytest.mark.slow  # two more trainings; the temperature itself is tested above
def test_a_run_that_ends_again_has_the_temperature_that_it_had(trained):
    """Whether it was killed after the checkpoint was written, or before."""
    run, result, _ = trained
    folder, file = result.folder, result.folder / "checkpoints/best.ckpt"
    stored = load_checkpoint(folder)
    whole = file.read_bytes()
    (folder / "result.json").unlink()
    again = fit(run, quiet=True)
    assert again["calibration"] == result["calibration"]
    assert file.read_bytes() == whole
    without = {key: value for key, value in stored.content["imgrec"].items() if key != "calibration"}
    write_checkpoint(stored.content | {"imgrec": without}, file)
    (folder / "result.json").unlink()
    assert fit(run, quiet=True)["calibration"] == result["calibration"]
    assert file.read_bytes() == whole


REASONS = {
    "loss=bce": "the probabilities of the loss BCE are no softmax of its logits",
    "data.val_share=0.01": "15 validation images are too few for 10 classes, which need 20",
}


@pytest.mark.parametrize("word", slow_but("loss=bce", among=REASONS))
def test_no_temperature_is_fitted_where_it_cannot_be(tmp_path, capsys, word):
    result = fit(settings(tmp_path, "trainer.limit_train_batches=1", word))
    assert load_checkpoint(result.folder).calibration is None
    assert result["calibration"]["reason"].startswith(REASONS[word])
    assert f"; no temperature was fitted: {result['calibration']['reason']}" in capsys.readouterr().out


@pytest.mark.slow  # two processes
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_fit_what_one_finds_in_their_checkpoint(tmp_path, strategy):
    run = settings(tmp_path, "trainer.limit_train_batches=8", f"trainer.strategy={strategy}", "trainer.devices=auto")
    assert exit_codes(2, lambda rank: fit(run, quiet=True)) == [0, 0]
    predictor, images = load(tmp_path / "run/1", device="cpu"), instantiate(run.data.to_node()).split("val")
    stored, logits = predictor.checkpoint.calibration, torch.tensor(logits_of(predictor, images.images))
    alone = fit_calibration(logits, torch.tensor(images.labels), torch.device("cpu"))
    assert stored.temperature == pytest.approx(alone.temperature, rel=1e-4)
    for name, array in alone.validation.to_arrays().items():
        assert stored.validation.to_arrays()[name] == pytest.approx(array, abs=1e-5), name
