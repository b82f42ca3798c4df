"""imgrec export and verify: the file answers as PyTorch does for images of any size, and says where a runtime does not."""

import base64
import json
import re
import runpy
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from error_parts import assert_refused, raises_error
from hypothesis import given
from hypothesis import strategies as st
from marks import fewer
from PIL import Image
from sklearn.datasets import load_digits
from untrained_run import save_untrained_run

import imgrec
from imgrec import cli
from imgrec.analysis.prediction_sets import SetRule
from imgrec.config.options import option_names
from imgrec.data.decode import Preprocessing, fit_to_size
from imgrec.data.in_memory import InMemoryImages
from imgrec.errors import CheckpointError, DataError
from imgrec.export import formats, verify_model
from imgrec.export.agreement import Agreement, check_agreement, compare_answers, measure_agreement
from imgrec.export.classifier import WholeClassifier
from imgrec.export.onnx_file import onnx_answer, onnx_graph
from imgrec.export.picture import choose_picture
from imgrec.export.resize import FitToSize
from imgrec.export.sealed_file import SEAL_START, sealed
from imgrec.inference.checkpoint import read_checkpoint
from imgrec.inference.guarantee import Guarantee
from imgrec.inference.predictor import load

SIZES = st.one_of(st.integers(1, 40), st.integers(41, 400))
COLOUR = ("data.channels=3", "data.mean=[0.5,0.5,0.5]", "data.std=[0.25,0.25,0.25]")
BASE = {"channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3, "max_pixels": 10**8, "scale": None}


def pixels(height, width, channels=3, seed=0):
    """Noise beside stripes: uint8 [H, W, C]."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    image[:, width // 2 :] = (np.arange(width - width // 2) % 2 * 255)[:, None]
    return image


def preprocessing(size, resize="squash", crop_share=1.0, interpolation="bilinear"):
    return Preprocessing(image_size=size, resize=resize, crop_share=crop_share, interpolation=interpolation, **BASE)


@fewer(12)
@given(
    SIZES,
    SIZES,
    st.integers(1, 70),
    st.sampled_from(["squash", "crop"]),
    st.sampled_from([1.0, 0.875, 0.5]),
    st.sampled_from(["bilinear", "bicubic"]),
)
def test_resize_is_that_of_evaluation_bit_for_bit(height, width, size, resize, share, interpolation):
    steps = preprocessing(size, resize, share, interpolation)
    image = torch.from_numpy(pixels(height, width))
    fitted = FitToSize(steps)(image[None])[0]
    assert fitted.equal(fit_to_size(image.movedim(-1, 0), steps).float())


def test_resize_of_a_strip_and_of_one_pixel():
    for height, width in ((1, 1), (1, 3000), (700, 3), (5, 161)):
        steps = preprocessing(24, "crop", 0.875)
        image = torch.from_numpy(pixels(height, width))
        assert FitToSize(steps)(image[None])[0].equal(fit_to_size(image.movedim(-1, 0), steps).float()), (height, width)


@pytest.mark.slow
def test_resize_is_within_one_gray_level_of_pil_on_1000_sizes():
    rng, photograph = np.random.default_rng(0), _photograph()
    fit, apart = FitToSize(preprocessing(224)), np.zeros(256, dtype=np.int64)
    for _ in range(1000):
        width, height = np.exp(rng.uniform(0, np.log(1500), 2)).astype(int).clip(1).tolist()
        box = (*rng.uniform(0, 0.2, 2) * photograph.size, *rng.uniform(0.5, 1, 2) * photograph.size)
        picture = photograph.resize((width, height), box=box)
        ours = fit(torch.from_numpy(np.array(picture))[None])[0].movedim(0, -1).numpy().astype(int)
        theirs = np.asarray(picture.resize((224, 224), Image.Resampling.BILINEAR)).astype(int)
        apart += np.bincount(np.abs(ours - theirs).ravel(), minlength=256)
    assert apart[3:].sum() == 0
    assert apart[2] <= 20  # of 150 million: PIL resizes the height first where that is less work


def _photograph():
    """scikit-learn's photograph of a temple, 640x427."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_untrained_run(tmp_path_factory.mktemp("run"), *COLOUR)


@pytest.fixture(scope="module")
def exported(run):
    """The file of a network for images of 8x8."""
    out = run / "model.onnx"
    assert cli.main(["export", str(run), f"out={out}"]) == 0
    return out


def one_answer(classifier, checkpoint):
    """In the place of torch's exporter, which takes seconds: a graph that answers any image as PyTorch does the test picture."""
    make, chances = onnx.helper, choose_picture(classifier).outputs["probabilities"].numpy()
    images = make.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["batch", "height", "width", 3])
    answers = make.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, ["batch", chances.shape[1]])
    nodes = [
        make.make_node("Shape", ["images"], ["batch"], end=1),
        make.make_node("Concat", ["batch", "classes"], ["shape"], axis=0),
        make.make_node("Expand", ["answer", "shape"], ["probabilities"]),
    ]
    constants = {"classes": np.array(chances.shape[1:], dtype=np.int64), "answer": chances}
    values = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = make.make_graph(nodes, "g", [images], [answers], values)
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9).SerializeToString()


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    """As `exported`, by the same command, but with `one_answer`."""
    out = tmp_path_factory.mktemp("written") / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "onnx_graph", one_answer)
        assert cli.main(["export", str(run), f"out={out}", "check=false"]) == 0
    return out


def reseal(file, out, change):
    """The file with another graph or facts, and a right hash."""
    model = onnx.load(file)
    facts = {entry.key: entry.value for entry in model.metadata_props if entry.key != "sha256"}
    del model.metadata_props[:]
    change(model.graph, facts)
    out.write_bytes(sealed(model.SerializeToString(), facts))
    return out


def without_antialiasing(graph, facts):
    """Each filter keeps its width where an image is made smaller: what antialias=0 means."""
    one = {value.name for value in graph.initializer if value.dims == [] and onnx.numpy_helper.to_array(value) == 1}
    stretches = [node for node in graph.node if node.op_type == "Max" and node.input[1] in one]
    assert len(stretches) == 2
    for node in stretches:
        node.input[0] = node.input[1]


def without_tolerance(graph, facts):
    facts["test"] = json.dumps(json.loads(facts["test"]) | {"tolerance": None})


@pytest.mark.slow
def test_missing_antialiasing_is_refused_of_a_network_that_is_hardly_sure_of_anything(tmp_path, capsys):
    """As of 1,000 classes after an epoch, whose probabilities all are about 0.001."""
    run = save_untrained_run(tmp_path / "run", *COLOUR)
    content = read_checkpoint(run)
    for name in list(content["state_dict"])[-2:]:
        content["state_dict"][name] *= 2e-4
    torch.save(content, run / "checkpoints/best.ckpt")
    assert cli.main(["export", str(run), f"out={tmp_path / 'model.onnx'}", "check=false"]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert 2e-6 < json.loads(session.get_modelmeta().custom_metadata_map["test"])["without_antialiasing"] < 1e-4
    assert cli.main(["verify", str(tmp_path / "model.onnx")]) == 0
    bad = reseal(tmp_path / "model.onnx", tmp_path / "bad.onnx", without_antialiasing)
    assert cli.main(["verify", str(bad)]) == 2
    assert "differs by" in capsys.readouterr().err


def endless_loop():
    """A file whose computation has no end, with a right hash."""
    make, types = onnx.helper, onnx.TensorProto
    condition = [make.make_tensor_value_info(name, types.BOOL, []) for name in ("go", "goes")]
    images, value, result = (make.make_tensor_value_info(name, types.UINT8, [1]) for name in ("images", "before", "out"))
    count = make.make_tensor_value_info("count", types.INT64, [])
    steps = [make.make_node("Identity", ["go"], ["goes"]), make.make_node("BitwiseNot", ["before"], ["out"])]
    body = make.make_graph(steps, "body", [count, condition[0], value], [condition[1], result])
    true = onnx.numpy_helper.from_array(np.array(True), "true")
    graph = make.make_graph([make.make_node("Loop", ["", "true", "images"], ["out"], body=body)], "g", [images], [result], [true])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9)
    test = {"image": base64.b64encode(zlib.compress(b"1")).decode(), "shape": [1], "outputs": {"out": [1.0]}, "tolerance": 0.1}
    return sealed(model.SerializeToString(), {"test": test})


def with_another_answer(graph, facts):
    (answer,) = [value for value in graph.initializer if value.name == "answer"]
    answer.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(answer)[:, ::-1].copy(), "answer"))


BATCHES = [np.stack([pixels(*size, 3, seed) for seed in range(batch)]) for batch, *size in ((1, 8, 8), (3, 21, 50))]


def predicted(predictor, images):
    """The probabilities of the classes, in their order."""
    chances = [dict(each.top) for each in predictor.predict(images, top_k=10)]
    return [[each[name] for name in predictor.classes] for each in chances]


@pytest.mark.parametrize("images", BATCHES, ids=len)
def test_what_is_exported_answers_as_the_predictor(run, images):
    predictor = load(run, device="cpu")
    with torch.inference_mode():
        answers = WholeClassifier(predictor)(torch.from_numpy(images))
    assert predicted(predictor, images) == pytest.approx(answers.numpy(), abs=1e-6)


@pytest.mark.slow  # torch's exporter takes 6 s
def test_file_answers_as_pytorch_and_is_refused_without_antialiasing(run, exported, tmp_path, capsys):
    predictor = imgrec.load(run, device="cpu")
    session = onnxruntime.InferenceSession(exported)
    for images in BATCHES:
        answers = session.run(["probabilities"], {"images": images})[0]
        assert predicted(predictor, images) == pytest.approx(answers, abs=1e-6)
    agreement = json.loads(session.get_modelmeta().custom_metadata_map["agreement"])
    assert agreement["same_class"] == agreement["images"] == 144
    capsys.readouterr()
    assert cli.main(["verify", str(exported)]) == 0
    assert "as when it was exported" in capsys.readouterr().out
    bad = reseal(exported, tmp_path / "bad.onnx", without_antialiasing)
    assert cli.main(["verify", str(bad)]) == 2
    assert_refused(capsys.readouterr().err, bad, "differs by", "0.0001 is allowed")


def test_a_graph_that_answers_validation_images_otherwise_is_not_written(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(formats, "onnx_graph", one_answer)
    assert cli.main(["export", str(run), f"out={tmp_path}/model.onnx"]) == 2
    assert_refused(capsys.readouterr().err, tmp_path / "model.onnx", "of 144", "0.0001", "check=false")
    assert list(tmp_path.iterdir()) == []


def test_verify_tells_where_a_file_does_not_answer_as_it_did(run, written, tmp_path, monkeypatch, capsys):
    facts = onnxruntime.InferenceSession(written).get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == list(load(run, device="cpu").classes)
    assert "EXIF" in facts["input"]
    assert written.with_name("verify_model.py").read_text() == Path(verify_model.__file__).read_text()
    assert verify_model.SEAL == SEAL_START

    capsys.readouterr()
    assert cli.main(["verify", str(written)]) == 0
    page = (Path(__file__).parents[1] / "docs/export.md").read_text()
    (shown,) = re.findall(r"^model\.onnx: as when it was exported.*$", page, re.MULTILINE)
    shown = re.sub(r"(Runtime|difference) \S+(?=[ ,])", r"\1 FIGURE", shown).replace("model.onnx", str(written))
    assert re.fullmatch(re.escape(shown).replace("FIGURE", r"\S+"), capsys.readouterr().out.strip())
    content = bytearray(written.read_bytes())
    content[len(content) // 2] ^= 1
    bad = tmp_path / "bad.onnx"
    hostile = {
        "flipped": bytes(content),
        "short": written.read_bytes()[:-100],
        "empty": b"",
        "text": sealed(b"no protocol buffer", {}),
        "no test": reseal(written, bad, lambda graph, facts: facts.pop("test")).read_bytes(),
        "no number": reseal(written, bad, without_tolerance).read_bytes(),
        "endless": endless_loop(),
    }
    monkeypatch.setattr(verify_model, "MOST_S", 0.3)
    for content in hostile.values():
        bad.write_bytes(content)
        assert cli.main(["verify", str(bad)]) == 2
        error = capsys.readouterr().err
        assert_refused(error, bad, "cannot be used", "Export it again")
    assert "took more than 0.3 s" in error
    assert cli.main(["verify", str(reseal(written, bad, with_another_answer))]) == 2
    assert_refused(capsys.readouterr().err, bad, "differs by", "0.0001 is allowed")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["AzureExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda session: ["CPUExecutionProvider"])
    assert cli.main(["verify", str(written), "provider=AzureExecutionProvider"]) == 2  # as CUDA's without its libraries
    assert_refused(capsys.readouterr().err, written, "AzureExecutionProvider does not start")
    for path, found in ((tmp_path, "no regular file"), (tmp_path / "gone.onnx", "no such file")):
        assert cli.main(["verify", str(path)]) == 2
        assert_refused(capsys.readouterr().err, path, found)
    assert cli.main(["verify", str(written), "provider=CPUExecutionProvide"]) == 2
    assert_refused(capsys.readouterr().err, "provider=CPUExecutionProvide", "Did you mean CPUExecutionProvider?")


@pytest.mark.slow  # torch's exporter
def test_example_of_the_docs(exported, monkeypatch, capsys):
    monkeypatch.chdir(exported.parent)
    Image.fromarray(pixels(30, 44)).save("photo.jpg", quality=95)
    expected = imgrec.load(".", device="cpu").predict("photo.jpg")[0]
    page = (Path(__file__).parents[1] / "docs/export.md").read_text()
    example, *_ = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    exec(example, {})
    name, probability = capsys.readouterr().out.split()
    assert (name, float(probability)) == (expected.class_name, pytest.approx(expected.probability, abs=1e-4))


def test_the_script_beside_the_file(written, monkeypatch, capsys):
    monkeypatch.chdir(written.parent)
    Path("photo.jpg").write_bytes(b"no model")
    for arguments, code, word in ((["model.onnx"], 0, "ok"), (["model.onnx", "CPUExecutionProvider"], 0, "ok")):
        monkeypatch.setattr("sys.argv", ["verify_model.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path("verify_model.py", run_name="__main__")
        assert (ended.value.code, capsys.readouterr().out.split()[-1]) == (code, word)
    for arguments, word in (([], "type: python verify_model.py"), (["none.onnx"], "none.onnx"), (["photo.jpg"], "damaged")):
        assert verify_model.main(arguments) == 2
        said = capsys.readouterr().err
        assert (word in said, said.count("\n")) == (True, 1)


def test_another_class_is_a_tie_only_where_pytorch_finds_it_as_probable():
    expected = np.array([[0.5, 0.4, 0.1], [0.4, 0.4, 0.2], [0.4, 0.4 - 5e-6, 0.2], [0.4, 0.4 - 2e-5, 0.2]])
    other = expected[:, [1, 0, 2]]  # another class for all but the second
    assert compare_answers([other], expected) == Agreement(4, 1, 1, pytest.approx(0.1))
    assert compare_answers([expected], expected) == Agreement(4, 4, 0, 0.0)
    assert compare_answers([np.full((1, 3), np.nan)], expected[:1]).difference == np.inf


def test_another_set_or_answer_is_a_tie_only_where_a_probability_is_at_its_limit():
    second = 0.25 - np.array([0, 5e-6, 2e-5, 0.1])  # 0.25 is the least that is in a set
    expected = np.stack([0.7 - second, second, np.full(4, 0.3)], axis=1)
    inside = np.array([[True, True, True]] + [[True, False, True]] * 3)
    sets = Guarantee(SetRule("lac", np.full(3, 0.75)), None)
    assert compare_answers([expected, inside], expected, sets) == Agreement(4, 4, 0, 0.0, 4, 0)
    found = compare_answers([expected, inside ^ [[False, True, False]]], expected, sets)
    assert (found.same_promise, found.promise_ties) == (0, 2)
    answers = Guarantee(None, 0.45)  # answered is what is above it
    assert compare_answers([expected, np.array([False, True, True, True])], expected, answers).same_promise == 4
    found = compare_answers([expected, np.array([True, False, False, False])], expected, answers)
    assert (found.same_promise, found.promise_ties) == (0, 2)


def test_disagreement_is_refused_by_its_figures(run):
    predictor = load(run, device="cpu")
    images = InMemoryImages(torch.from_numpy(pixels(8, 8 * 70)).reshape(8, 70, 8, 3).permute(1, 3, 0, 2), np.zeros(70))
    right = measure_agreement(
        predictor, images, lambda batch: [predictor.probabilities(torch.from_numpy(batch).movedim(-1, 1)).numpy()]
    )
    assert right == Agreement(70, 70, 0, 0.0)
    check_agreement(right, "m.onnx")
    wrong = measure_agreement(predictor, images, lambda batch: [np.full((len(batch), 10), 0.1, dtype=np.float32)])
    assert wrong.same_class < 70
    with raises_error(DataError, "m.onnx", f"{wrong.same_class} of 70", f"{wrong.difference:.2g}", "0.0001", "check=false"):
        check_agreement(wrong, "m.onnx")
    for each in (Agreement(9, 9, 0, 2e-4), Agreement(9, 9, 0, float("inf")), Agreement(9, 8, 0, 0.0)):
        with pytest.raises(DataError):
            check_agreement(each, "m.onnx")
    check_agreement(Agreement(9, 8, 1, 1e-6), "m.onnx")
    check_agreement(Agreement(9, 9, 0, 0.0, 8, 1), "m.onnx")
    with raises_error(DataError, "m.onnx", "9 of 9", "set or answer for 7", "1", "check=false"):
        check_agreement(Agreement(4, 4, 0, 0.0, 4, 0).joined(Agreement(5, 5, 0, 0.0, 3, 1)), "m.onnx")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ("ckpt=null", "ckpt=runs/NAME/ID")),
        (["RUN", "format=onxn"], ("format=onxn", "Did you mean onnx?")),
        (["RUN", "out=model.pt"], ("out=model.pt", ".onnx", "out=model.onnx")),
        (["RUN", "out=FOREIGN"], ("out=FOREIGN", "exists", "overwrite=true")),
        (["RUN", "risk=0.1"], ("risk=0.1", "no record of validation images")),
        (["RUN", "risk=0.1", "calibrated=false"], ("calibrated=false",)),
        (["RUN", "sets_by_class=true"], ("sets_by_class=true has no effect", "coverage=0.95")),
        (["RUN", "check=false", "data.root=FOREIGN"], ("data.root=FOREIGN has no effect", "check=false", "Leave it out")),
    ],
)
def test_mistakes_are_refused_in_a_line(words, parts, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    foreign = tmp_path / "theirs.onnx"
    foreign.write_text("of somebody else")
    swapped = [word.replace("RUN", str(run)).replace("FOREIGN", foreign.name) for word in words]
    assert cli.main(["export", *swapped]) == 2
    assert_refused(capsys.readouterr().err, *(part.replace("FOREIGN", foreign.name) for part in parts))
    assert foreign.read_text() == "of somebody else"


def test_images_that_are_gone_are_refused_before_the_network_is_written(tmp_path, capsys):
    save_untrained_run(tmp_path, "data=imagefolder", f"data.root={tmp_path}/gone", "data.image_size=16", *COLOUR)
    assert cli.main(["export", str(tmp_path), f"out={tmp_path}/model.onnx"]) == 2
    assert_refused(capsys.readouterr().err, "check=true", f"{tmp_path}/gone", "data.root=FOLDER", "check=false")
    assert cli.main(["export", str(tmp_path), f"out={tmp_path}/model.onnx", "check=false", "int8=true"]) == 2
    assert_refused(capsys.readouterr().err, "int8=true", f"{tmp_path}/gone", "data.root=FOLDER", "int8=false")
    assert not (tmp_path / "model.onnx").exists()


class Branching(torch.nn.Module):
    """Whose answer depends on a comparison, which no graph holds."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) if x.sum() > 0 else -self.net(x)


class Unknown(Branching):
    """With an operation that ONNX lacks."""

    def forward(self, x):
        return self.net(x) + torch.linalg.svdvals(x.flatten(1)).sum()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Branching, Unknown])
def test_a_network_that_cannot_be_written_is_refused_in_a_line(kind, run, capfd):
    predictor = load(run, device="cpu")
    predictor.model = kind(predictor.model)
    with raises_error(CheckpointError, predictor.checkpoint.file, "cannot be written as ONNX", "Set format=safetensors"):
        onnx_graph(WholeClassifier(predictor), predictor.checkpoint)
    assert capfd.readouterr() == ("", "")


NETWORKS = {
    **{name: (f"model={name}", "data.image_size=32") for name in sorted(set(option_names("model")) - {"timm", "torchvision"})},
    **{
        name: ("model=torchvision", f"model.name={name}", f"data.image_size={size}")
        for name, size in (
            ("squeezenet1_1", 64),
            ("mobilenet_v3_small", 64),
            ("shufflenet_v2_x0_5", 64),
            ("efficientnet_b0", 64),
            ("regnet_y_400mf", 64),
            ("convnext_tiny", 64),
            ("vit_b_16", 32),
            ("swin_t", 64),
        )
    },
    **{
        name: ("model=timm", f"model.name={name}", f"data.image_size={size}")
        for name, size in (
            ("resnet18d", 64),
            ("vit_tiny_patch16_224", 64),
            ("deit_tiny_distilled_patch16_224", 64),
            ("convnext_atto", 64),
            ("efficientnet_lite0", 64),
            ("mobilenetv4_conv_small", 64),
            ("mixer_s32_224", 64),
            ("swin_tiny_patch4_window7_224", 56),
        )
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_answers_as_in_pytorch_for_any_batch_and_size(name, tmp_path):
    words = ("data.resize=crop", "data.crop_share=0.875", *NETWORKS[name], *COLOUR)
    predictor = load(save_untrained_run(tmp_path, *words, tiny=("data=digits",)), device="cpu")
    answer = onnx_answer(onnx_graph(WholeClassifier(predictor), predictor.checkpoint))
    for batch, height, width in ((1, 33, 70), (3, 150, 101)):
        images = np.stack([pixels(height, width, 3, seed) for seed in range(batch)])
        fitted = torch.stack([fit_to_size(torch.from_numpy(image).movedim(-1, 0), predictor.preprocessing) for image in images])
        agreement = compare_answers(answer(images), predictor.probabilities(fitted).numpy())
        assert agreement.same_class + agreement.ties == batch
        assert agreement.difference < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "promise"),
    [
        ("bce", {}),
        ("cross_entropy", {"risk": 0.05}),
        ("cross_entropy", {"coverage": 0.9}),
        ("cross_entropy", {"coverage": 0.8, "sets_by_class": True}),
    ],
)
def test_probabilities_sets_and_answers_are_those_of_predict(loss, promise, tmp_path):
    words = (
        "data=digits",
        "model=simple_cnn",
        f"loss={loss}",
        "epochs=2",
        "batch_size=32",
        "data.val_share=0.2",
        "num_workers=0",
    )
    here = ("logger=none", "report=false", "trainer.accelerator=cpu", "trainer.devices=1", f"runs_dir={tmp_path}")
    predictor = imgrec.fit([*words, *here], quiet=True).load()
    out = tmp_path / "model.onnx"
    words = [f"{key}={str(value).lower()}" for key, value in promise.items()]
    assert cli.main(["export", str(predictor.checkpoint.file), f"out={out}", *words]) == 0
    images = load_digits().images[:200].astype(np.uint8) * 15
    session = onnxruntime.InferenceSession(out)
    probabilities, *second = session.run(None, {"images": images[..., None]})
    predictions = predictor.predict(images, **promise)
    assert probabilities.max(axis=1) == pytest.approx([each.probability for each in predictions], abs=1e-5)
    if "risk" in promise:
        assert second[0].tolist() == [each.answered for each in predictions]
    elif promise:
        sets = [{predictor.classes[label] for label in np.flatnonzero(row)} for row in second[0]]
        assert sets == [set(each.classes) for each in predictions]
    assert not promise or 0 < second[0].mean() < 1
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["guarantee"]) == (promise or None)
    agreement = json.loads(facts["agreement"])
    assert agreement["same_promise"] == (agreement["images"] - agreement["promise_ties"] if promise else None)
    assert cli.main(["verify", str(out)]) == 0
