"""The server with an exported file: the answers of the checkpoint, for images of any sizes in one batch."""

import os

import numpy as np
import pytest
from error_parts import assert_error, assert_refused, raises_error
from image_files import encode, picture
from PIL import Image
from served import LIMITS, ask, form, service
from untrained_run import save_untrained_run

from imgrec import cli
from imgrec.data.decode import Preprocessing
from imgrec.errors import DataError
from imgrec.inference.predictor import load
from imgrec.serving.limits import Limits
from imgrec.serving.onnx_recognizer import OnnxRecognizer

ROOM = Limits(**{**vars(LIMITS), "max_pixels": 10**6, "max_body_bytes": 10**6, "max_images": 20})
SIZES = [(30, 20), (8, 8), (30, 20), (50, 9), (8, 8)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_untrained_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def exported(run):
    assert cli.main(["export", str(run), f"out={run}/model.onnx", "check=false"]) == 0
    return run / "model.onnx"


@pytest.fixture
def recognizer(exported):
    return OnnxRecognizer(exported, cores=1, max_pixels=10**6)


@pytest.mark.slow
def test_it_answers_as_the_checkpoint(run, recognizer):
    images = [picture(number, *size) for number, size in enumerate(SIZES)]
    expected = load(run, device="cpu").predict(images, top_k=10)
    body, kind = form(*((f"{number}.png", encode(image, "PNG")) for number, image in enumerate(images)))
    told = ask(service(recognizer, limits=ROOM), lambda client: client.predict(body, kind, "?top_k=10")).json["predictions"]
    for answer, prediction in zip(told, expected, strict=True):
        assert answer["class"] == prediction.class_name
        chances = dict(prediction.top)
        assert [each["probability"] for each in answer["top"]] == pytest.approx(
            [chances[each["class"]] for each in answer["top"]], abs=1e-4
        )


@pytest.mark.slow
def test_a_bad_image_in_a_batch_is_refused_by_its_name_and_the_others_are_answered(recognizer):
    whole = encode(picture(0, 30, 20), "PNG")
    answers = recognizer.answer([(whole, "good.png"), (whole[:60], "bad.png"), (whole, "again.png")], 3)
    assert [type(answer) is DataError for answer in answers] == [False, True, False]
    assert answers[0] == answers[2]
    body, kind = form(("good.png", whole), ("bad.png", whole[:60]))
    reply = ask(service(recognizer, limits=ROOM), lambda client: client.predict(body, kind))
    assert (reply.status, "bad.png" in reply.json["error"]) == (422, True)


@pytest.mark.slow
def test_a_file_that_changed_is_refused(exported, tmp_path):
    content = bytearray(exported.read_bytes())
    content[len(content) // 2] ^= 1
    (file := tmp_path / "model.onnx").write_bytes(content)
    with raises_error(DataError, file, "damaged", "Export it again"):
        OnnxRecognizer(file, cores=1, max_pixels=10**6)


@pytest.mark.slow
def test_what_is_served_is_what_was_verified(exported, tmp_path, monkeypatch):
    """Also where another file is put in its place meanwhile."""
    from imgrec.export.verify_model import verify  # imports onnxruntime, which fast tests do without

    (file := tmp_path / "model.onnx").write_bytes(exported.read_bytes())

    def verify_and_replace(content, providers):
        file.write_bytes(b"another")
        return verify(content, providers)

    monkeypatch.setattr("imgrec.export.verify_model.verify", verify_and_replace)
    assert len(OnnxRecognizer(file, cores=1, max_pixels=10**6).classes) == 10


@pytest.mark.slow
@pytest.mark.parametrize("added", ["prediction_set", "answered"])
def test_what_the_file_guarantees_is_in_the_answer(recognizer, added):
    """With outputs as an exported file has them."""
    chances = np.array([[0.1, 0.6, 0.3] + [0.0] * 7], dtype=np.float32)
    extra = np.array([[True, True, False] + [False] * 7]) if added == "prediction_set" else np.array([False])
    recognizer._outputs = ["probabilities", added]
    recognizer.adds = "set" if added == "prediction_set" else "answered"

    class Session:
        def run(self, names, inputs):
            return [chances, extra]

    recognizer._session = Session()
    (told,) = ask(service(recognizer, limits=ROOM), lambda client: client.predict(encode(picture(0, 9, 9), "PNG"))).json[
        "predictions"
    ]
    assert told["class"] == "1"
    assert told.get("set", told.get("answered")) == (["1", "0"] if added == "prediction_set" else False)


def test_an_answer_that_is_not_a_number_is_no_answer():
    class Session:
        def run(self, names, inputs):
            return [np.array([[0.25, 0.75], [np.nan, np.nan], [1.0, 0.0]], dtype=np.float32)]

    recognizer = OnnxRecognizer.__new__(OnnxRecognizer)
    recognizer.classes, recognizer.adds, recognizer._outputs, recognizer._session = "ab", None, ["probabilities"], Session()
    recognizer.file = "model.onnx"
    first, second, third = recognizer._predict(np.zeros((3, 8, 8, 1), dtype=np.uint8), 1)
    assert (first.class_name, third.class_name) == ("b", "a")
    assert_error(str(second), "model.onnx", "not a number")


def test_a_file_that_is_gone_or_cannot_be_read_is_named_once(tmp_path):
    """As a reload finds it."""
    for name, reason in (("gone.onnx", "No such file"), ("folder.onnx", "no regular file"), ("empty.onnx", "damaged")):
        (tmp_path / "folder.onnx").mkdir(exist_ok=True)
        (tmp_path / "empty.onnx").touch()
        with pytest.raises(DataError) as error:
            OnnxRecognizer(tmp_path / name, cores=1, max_pixels=10**6)
        assert_error(str(error.value), tmp_path / name, "cannot be served", reason, "Export it again")
        assert str(error.value).count(name) == 1


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc")])
def test_a_file_that_the_memory_does_not_hold_need_not_be_exported_again(tmp_path, monkeypatch, capsys, error):
    (file := tmp_path / "model.onnx").touch()

    def fail(*_):
        raise error

    monkeypatch.setattr("imgrec.export.verify_model.verify", fail)
    with raises_error(DataError, file, "cannot be served", "memory", "End what else uses it"):
        OnnxRecognizer(file, cores=1, max_pixels=10**6)
    assert cli.main(["verify", str(file)]) == 2
    assert_refused(capsys.readouterr().err, file, "cannot be used", "memory", "End what else uses it")


@pytest.mark.slow
def test_a_pipe_is_refused_at_once(tmp_path):
    """Also in the place of the file that is served, for a reload."""
    os.mkfifo(tmp_path / "model.onnx")
    with raises_error(DataError, tmp_path / "model.onnx", "cannot be served", "no regular file"):
        OnnxRecognizer(tmp_path / "model.onnx", cores=1, max_pixels=10**6)


def test_images_at_once_have_no_more_pixels_than_one_may_have():
    """With a network whose answer is the first pixel."""
    given = []

    class Session:
        def run(self, names, inputs):
            given.append(inputs["images"].shape)
            return [inputs["images"][:, 0, 0] / np.float32(255)]

    recognizer = OnnxRecognizer.__new__(OnnxRecognizer)
    recognizer.classes, recognizer.adds, recognizer._outputs, recognizer._session = ["one"], None, ["probabilities"], Session()
    recognizer._steps = Preprocessing(
        image_size=8, channels=1, mean=[0.5], std=[0.5], resize="squash", crop_share=1.0, interpolation="bilinear", max_pixels=100, scale=None
    )  # fmt: skip
    sides = [(6, 8), (6, 8), (10, 10), (5, 4), (6, 8), (5, 4), (7, 7)]
    images = [np.full(side, 30 * number, dtype=np.uint8) for number, side in enumerate(sides)]
    answers = recognizer.answer([(encode(Image.fromarray(image), "PNG"), "a.png") for image in images], 1)
    assert [round(answer.probability * 255) for answer in answers] == [30 * number for number in range(len(sides))]
    assert given == [(2, 6, 8, 1), (1, 10, 10, 1), (2, 5, 4, 1), (1, 6, 8, 1), (1, 7, 7, 1)]
