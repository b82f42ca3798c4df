"""Other formats than ONNX: each says what the Predictor says, is read without imgrec, and costs what 8 bits cost."""

import io
import json
import logging
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from error_parts import assert_refused, raises_error
from hypothesis import given
from hypothesis import strategies as st
from marks import fewer
from PIL import Image
from processes import run_command
from safetensors import safe_open
from untrained_run import CLASSES, save_untrained_run

import imgrec
from imgrec import cli
from imgrec.analysis.paired import paired_interval
from imgrec.config.options import option_names
from imgrec.data.batch import Request
from imgrec.data.decode import Preprocessing, fit_to_size
from imgrec.data.in_memory import InMemoryImages
from imgrec.errors import CheckpointError, ConfigError
from imgrec.export.agreement import MOST_APART
from imgrec.export.classifier import WholeClassifier
from imgrec.export.int8 import INT8_APART, measure_cost, quantize
from imgrec.export.sealed_file import sealed
from imgrec.export.torch_program import FitByTorch, program_answer, program_bytes, torch_program
from imgrec.export.tracing import records_silenced, tracing_silenced
from imgrec.export.weights import network_facts
from imgrec.inference.evaluation import evaluation_images
from imgrec.inference.guarantee import Guarantee
from imgrec.models.losses import CrossEntropy

PAGE = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
RGB = ("data.channels=3", "data.mean=[0.3,0.4,0.5]", "data.std=[0.2,0.3,0.4]", "data.resize=crop", "data.crop_share=0.875")
SHAPES = ((1, 8, 8), (3, 41, 57), (2, 1, 90), (1, 700, 5), (2, 64, 9))  # of batches: images, height, width
WITHOUT_IMGREC = 'import sys\nsys.modules["imgrec"] = None\n'
LIBRARIES = {"timm", "torchvision"}


def batch_of(count, height, width, channels):
    return np.random.default_rng(height).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def expected_of(predictor, batch):
    """float32 [B, K] for uint8 [B, H, W, C]."""
    answers = predictor.predict(batch, top_k=len(predictor.classes))
    return np.array([[dict(answer.top)[name] for name in predictor.classes] for answer in answers], dtype=np.float32)


def python_block(start):
    """The one block of the page that begins so."""
    (block,) = re.findall(rf"```python\n({re.escape(start)}.*?)```", PAGE, re.DOTALL)
    return block


@fewer(15)
@given(
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    size=st.integers(2, 40),  # of one pixel torch's resize of a batch fails
    crop_share=st.sampled_from([None, 0.5, 0.875, 1.0]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_a_batch_is_fitted_as_each_image_of_a_file_is(height, width, size, crop_share, interpolation):
    steps = Preprocessing(
        image_size=size, resize="crop" if crop_share else "squash", crop_share=crop_share or 1.0, interpolation=interpolation
    )
    batch = torch.from_numpy(batch_of(2, height, width, 3))
    expected = torch.stack([fit_to_size(image.movedim(-1, 0), steps) for image in batch])
    assert FitByTorch(steps)(batch).equal(expected.float())


@pytest.mark.slow  # torch.export takes seconds
@pytest.mark.parametrize("name", sorted(set(option_names("model")) - LIBRARIES))
def test_a_program_of_every_network_says_what_the_predictor_says(tmp_path, name):
    words = (*RGB, "data.image_size=32", "trainer.channels_last=true")
    predictor = imgrec.load(save_untrained_run(tmp_path, *words, tiny=("data=digits", f"model={name}")), device="cpu")
    answer = program_answer(program_bytes(torch_program(WholeClassifier(predictor), predictor.checkpoint), {}))
    for shape in SHAPES:
        batch = batch_of(*shape, 3)
        np.testing.assert_allclose(answer(batch)[0], expected_of(predictor, batch), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "name"),
    [("torchvision", name) for name in ("mobilenet_v3_small", "swin_t", "convnext_tiny", "vit_b_32")]
    + [("timm", name) for name in ("resnet10t", "vit_tiny_patch16_224", "levit_128s", "mobilenetv4_conv_small")],
)
def test_a_program_of_a_librarys_network_says_what_the_predictor_says(tmp_path, source, name):
    words = (*RGB, "data.image_size=224")
    run = save_untrained_run(tmp_path, *words, tiny=("data=digits", f"model={source}", f"model.name={name}"))
    predictor = imgrec.load(run, device="cpu")
    answer = program_answer(program_bytes(torch_program(WholeClassifier(predictor), predictor.checkpoint), {}))
    for shape in ((1, 40, 60), (3, 300, 250)):
        batch = batch_of(*shape, 3)
        np.testing.assert_allclose(answer(batch)[0], expected_of(predictor, batch), rtol=0, atol=1e-5)


def test_weights_are_those_of_the_network_and_the_facts_say_how_it_is_built(tmp_path):
    run = save_untrained_run(tmp_path, "loss=bce")
    out = tmp_path / "m.safetensors"
    assert cli.main(["export", str(run), "format=safetensors", f"out={out}", "check=false"]) == 0
    facts = json.loads(out.with_suffix(".json").read_text())
    predictor = imgrec.load(run, device="cpu")
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["imgrec"]) == facts
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dictionary
    expected = predictor.model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert facts["classes"] == list(CLASSES)
    assert facts["network"] == predictor.checkpoint.run.model | {"num_classes": 10}
    assert facts["preprocessing"] == predictor.checkpoint.preprocessing
    # The formula of the file, as Python, gives the probabilities.
    batch = torch.from_numpy(batch_of(3, 8, 8, 1)).movedim(-1, 1)
    with torch.no_grad():
        logits = predictor.model(predictor.preprocess(batch))
    names = {"logits": logits, "temperature": facts["temperature"], "logsigmoid": torch.nn.functional.logsigmoid}
    answer = eval(facts["probabilities"], names | {"softmax": lambda values: values.softmax(dim=1)})
    torch.testing.assert_close(answer, predictor.probabilities(batch))
    loss = CrossEntropy(label_smoothing=0, class_weights="none", l1=0, l2=0)
    assert network_facts(predictor.checkpoint, loss)["probabilities"] == "softmax(logits / temperature)"


def test_names_that_are_no_utf8_have_question_marks_in_every_file(tmp_path):
    names = ("a,b", "<b>", "l\nb", "日本", "\udcff", *"56789")  # \udcff: how Python gives a byte of a folder's name
    run = save_untrained_run(tmp_path / "r\udcfe", classes=names)
    expected = ["?" if name == "\udcff" else name for name in names]
    out = tmp_path / "m.safetensors"
    assert cli.main(["export", str(run), "format=safetensors", f"out={out}", "check=false"]) == 0
    facts = json.loads(out.with_suffix(".json").read_text())
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["imgrec"]) == facts
    assert (facts["classes"], facts["run"]) == (expected, str(run / "checkpoints/best.ckpt").replace("\udcfe", "?"))
    entries = onnx.load_from_string(sealed(b"", {"classes": names, "run": str(run)})).metadata_props
    assert json.loads(entries[0].value) == expected
    assert entries[1].value == str(run).replace("\udcfe", "?")


def test_a_network_whose_answer_is_no_number_is_refused(tmp_path, capsys):
    run = save_untrained_run(tmp_path)
    file = run / "checkpoints/best.ckpt"
    content = torch.load(file, weights_only=True)
    for tensor in content["state_dict"].values():
        tensor.fill_(float("nan")) if tensor.is_floating_point() else None
    torch.save(content, file)
    assert cli.main(["export", str(run), "format=safetensors", f"out={tmp_path}/m.safetensors", "check=false"]) == 2
    assert_refused(capsys.readouterr().err, file, "not a number", "optim.lr")
    assert not (tmp_path / "m.safetensors").exists()


def test_the_cost_of_8_bits_is_counted_over_pairs():
    draw = np.random.default_rng(0)
    labels = draw.integers(3, size=100)
    images = InMemoryImages(torch.from_numpy(np.arange(100, dtype=np.uint8)).view(100, 1, 1, 1), labels)
    answers = draw.random((2, 100, 3)).astype(np.float32)  # of float32 and 8 bits, by the pixel of the image
    cost = measure_cost(images, 3, *(lambda batch, own=own: [own[batch[:, 0, 0, 0]]] for own in answers))
    right = answers.argmax(2) == labels
    assert (cost.float32_accuracy, cost.int8_accuracy) == (right[0].mean(), right[1].mean())
    assert cost.lost == pytest.approx(right[0].mean() - right[1].mean())
    expected = paired_interval((right[1] & ~right[0]).sum(), (right[0] & ~right[1]).sum(), 100)
    assert cost.lost_interval == expected[1:]
    assert (cost.images, cost.same_class) == (100, (answers[0].argmax(1) == answers[1].argmax(1)).sum())
    assert cost.difference == pytest.approx(np.abs(answers[0] - answers[1]).max())
    assert f"{100 * cost.lost:.2f} points" in str(cost)


def test_a_network_without_a_layer_for_8_bits_is_refused():
    value = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["images"], ["images2"])], "g", [value], [])
    with raises_error(ConfigError, "int8=true", "no convolution", "int8=false"):
        quantize(onnx.helper.make_model(graph).SerializeToString(), None)


def test_what_is_logged_elsewhere_stays_as_it_was():
    """A program that calls us may have its own logging.disable."""
    logging.disable(logging.INFO)
    try:
        with tracing_silenced(), records_silenced():
            assert logging.root.manager.disable == logging.CRITICAL
        assert logging.root.manager.disable == logging.INFO
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["format=torch_export", "int8=true"], ("int8=true", "format=torch_export", "Set format=onnx")),
        (["int8=true", "coverage=0.9"], ("coverage=0.9", "Leave it out, or int8=true")),
        (["format=safetensors", "risk=0.1"], ("risk=0.1", "format=torch_export")),
        (["format=torch_export", "out=m.onnx"], ("out=m.onnx", ".pt2", "format=onnx", "out=m.pt2")),
        (["out=m.pt2"], ("out=m.pt2", ".onnx", "format=torch_export", "out=m.onnx")),
        (["out=m.safetensors"], ("out=m.safetensors", ".onnx", "format=safetensors", "out=m.onnx")),
        (["format=torch_export", "out=theirs.pt2"], ("out=theirs.pt2", "exists", "overwrite=true")),
        (["format=safetensors", "out=theirs.safetensors"], ("out=theirs.safetensors", "exists", "overwrite=true")),
        (["format=safetensors", "out=other.safetensors"], ("out=other.json", "exists", "overwrite=true")),
    ],
)
def test_mistakes_are_refused_in_a_line(words, parts, tmp_path, monkeypatch, capsys):
    run = save_untrained_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    for name in ("theirs.pt2", "theirs.safetensors", "other.json"):
        Path(name).write_text("of somebody else")
    assert cli.main(["export", str(run), *words]) == 2
    assert_refused(capsys.readouterr().err, *parts)
    assert Path("other.json").read_text() == "of somebody else"


@pytest.mark.slow  # torchvision's ResNet-18, and processes with torch
@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["format=torch_export"], "import json\n\nimport numpy as np\nimport torch\n"),
        (["format=safetensors"], "import json\n\nimport torchvision\n"),
    ],
)
def test_the_pages_example_needs_no_imgrec(tmp_path, words, start, capsys):
    colour = (*RGB, "data.image_size=64", "model=resnet18", "model.stem=imagenet")
    run = save_untrained_run(tmp_path, *colour, tiny=("data=digits",))
    for _ in range(2):  # ours may be replaced
        assert (
            cli.main(["export", str(run), *words, f"out={tmp_path}/model{'.pt2' if 'torch' in words[0] else '.safetensors'}"])
            == 0
        )
    Image.fromarray(batch_of(1, 70, 90, 3)[0]).save(tmp_path / "photo.jpg")
    said = run_command(sys.executable, "-W", "error", "-c", WITHOUT_IMGREC + python_block(start), cwd=tmp_path).stdout.split()
    (answer,) = imgrec.load(run, device="cpu").predict(tmp_path / "photo.jpg")
    assert (said[0], float(said[1])) == (answer.class_name, pytest.approx(answer.probability, abs=1e-5))
    python, *command = shlex.split(capsys.readouterr().out.splitlines()[-1])  # what the command says next
    assert python == "python"
    found = run_command(sys.executable, *command).stdout
    tensors = len(imgrec.load(run, device="cpu").model.state_dict())
    assert "classes" in found.split() if "torch" in words[0] else found == f"{tensors} tensors\n"
    assert len(found) < 500  # also of 120 classes


def test_a_program_for_images_of_one_pixel_is_refused(tmp_path):
    predictor = imgrec.load(
        save_untrained_run(tmp_path, "data.image_size=1", "model=resnet20", tiny=("data=digits",)), device="cpu"
    )
    with raises_error(CheckpointError, predictor.checkpoint.file, "one pixel", "Set format=onnx"):
        torch_program(WholeClassifier(predictor), predictor.checkpoint)


@pytest.mark.slow
def test_a_program_with_a_promise_gives_it_as_its_second_output(tmp_path):
    predictor = imgrec.load(save_untrained_run(tmp_path), device="cpu")
    batch = batch_of(30, 9, 8, 1)
    threshold = float(np.median(expected_of(predictor, batch).max(axis=1)))  # half of the images are answered
    program = torch_program(WholeClassifier(predictor, Guarantee(None, threshold)), predictor.checkpoint)
    content = program_bytes(program, {})
    with torch.no_grad():
        probabilities, answered = torch.export.load(io.BytesIO(content)).module()(torch.from_numpy(batch))
    np.testing.assert_array_equal(probabilities, program_answer(content)(batch)[0])
    assert answered.equal(probabilities.amax(1) > threshold)
    assert 10 < answered.sum() < 20


@pytest.mark.slow  # torch's exporter and onnxruntime's quantisation
@pytest.mark.parametrize(
    "words", [("model=resnet20",), ("model=timm", "model.name=vit_tiny_patch16_224", "data.image_size=32", *RGB[:3])]
)
def test_a_file_of_8_bits_says_what_it_costs(tmp_path, words, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    run = save_untrained_run(tmp_path, *words, tiny=("data=digits",))
    assert cli.main(["export", str(run), f"out={tmp_path}/m.onnx"]) == 0
    assert cli.main(["export", str(run), f"out={tmp_path}/m8.onnx", "int8=true"]) == 0
    said = capsys.readouterr().out
    assert cli.main(["verify", f"{tmp_path}/m8.onnx"]) == 0
    whole, small = ((tmp_path / name).stat().st_size for name in ("m.onnx", "m8.onnx"))
    assert small < 0.6 * whole
    session = onnxruntime.InferenceSession(tmp_path / "m8.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    cost = json.loads(facts["int8"])
    predictor = imgrec.load(run, device="cpu")
    images = evaluation_images(predictor.checkpoint, split="val", folder=None, changes={}).images
    batch = images[Request(0, np.arange(len(images)), len(images))]
    (answers,) = session.run(["probabilities"], {"images": batch.images.movedim(1, -1).contiguous().numpy()})
    assert cost["float32_accuracy"] == pytest.approx(predictor.evaluate("val").accuracy)
    assert cost["int8_accuracy"] == pytest.approx((answers.argmax(1) == batch.labels.numpy()).mean())
    assert f"costs {100 * cost['lost']:.2f} points" in said
    # Less where antialiasing left out would move a probability by less than twice as much.
    assert MOST_APART < json.loads(facts["test"])["tolerance"] <= INT8_APART
