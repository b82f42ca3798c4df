"""An exported file in a browser: onnxruntime-web gives what ONNX Runtime gives in Python. Needs the extra `browser`, chromium, and onnxruntime-web."""

import base64
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from image_files import encode
from PIL import Image
from processes import LIMIT_S
from untrained_run import save_untrained_run

from imgrec import cli

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
ADDRESS = "http://exported.test/"
TYPES = {".wasm": "application/wasm", ".mjs": "text/javascript", ".js": "text/javascript", ".html": "text/html"}
RGB = ("data.channels=3", "data.mean=[0.3,0.4,0.5]", "data.std=[0.2,0.3,0.4]", "data.resize=crop", "data.crop_share=0.875")
RUN = """async ([pixels, shape]) => {
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create("model.onnx");
  const bytes = Uint8Array.from(atob(pixels), letter => letter.charCodeAt(0));
  const { probabilities } = await session.run({ images: new ort.Tensor("uint8", bytes, shape) });
  return Array.from(probabilities.data);
}"""
Open = Callable[[Path, str], Any]


@pytest.fixture(scope="module")
def runtime() -> Path:
    """The folder of onnxruntime-web's files."""
    folders = [ROOT / "node_modules", *map(Path, filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep)))]
    found = [folder / "onnxruntime-web" / "dist" for folder in folders]
    if not any(folder.is_dir() for folder in found):
        pytest.skip("there is no onnxruntime-web: npm install --no-save onnxruntime-web")
    return next(folder for folder in found if folder.is_dir())


@pytest.fixture
def opened(browser: Any, runtime: Path) -> Iterator[Open]:
    """opened(FOLDER, HTML) is a page beside the folder's and onnxruntime-web's files, in which no error is left unseen."""
    wrong: list[str] = []
    context = browser.new_context()
    context.set_default_timeout(1000 * LIMIT_S)

    def open_page(folder: Path, html: str) -> Any:
        def answer(route: Any) -> None:
            name = route.request.url.removeprefix(ADDRESS)
            file = folder / name if (folder / name).is_file() else runtime / Path(name).name
            kind = TYPES.get(file.suffix if name else ".html", "application/octet-stream")
            anyone = {"Access-Control-Allow-Origin": "*"}  # as the page of the docs gets them from elsewhere
            route.fulfill(body=file.read_bytes() if name else html.encode(), content_type=kind, headers=anyone)

        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.route("**/*", answer)
        page.goto(ADDRESS)
        return page

    yield open_page
    context.close()
    assert wrong == []


@pytest.fixture(scope="module", params=["float32", "int8"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds model.onnx."""
    run = save_untrained_run(tmp_path_factory.mktemp("run"), "model=resnet20", *RGB, "data.image_size=24", tiny=("data=digits",))
    assert cli.main(["export", str(run), f"out={run}/model.onnx", f"int8={request.param == 'int8'}"]) == 0
    return run


def test_a_browser_gives_what_python_gives_and_the_answer_in_the_file(folder: Path, opened: Open) -> None:
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    test = json.loads(session.get_modelmeta().custom_metadata_map["test"])
    page = opened(folder, '<!doctype html><script src="ort.wasm.min.js"></script>')

    def in_browser(images: Any) -> Any:
        text = base64.b64encode(images.tobytes()).decode()
        return np.reshape(page.evaluate(RUN, [text, list(images.shape)]), (len(images), -1))

    carried = np.frombuffer(zlib.decompress(base64.b64decode(test["image"])), np.uint8).reshape(test["shape"])
    assert np.abs(in_browser(carried) - test["outputs"]["probabilities"]).max() <= test["tolerance"]
    for shape in ((1, 24, 24, 3), (3, 61, 90, 3), (1, 400, 300, 3)):
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        (expected,) = session.run(["probabilities"], {"images": images})
        np.testing.assert_allclose(in_browser(images), expected, rtol=0, atol=test["tolerance"] / 10)


def test_onnxs_own_resize_has_its_antialiasing_in_webassembly(tmp_path: Path, opened: Open) -> None:
    """As docs/export.md says; the exported file does without."""
    inputs, outputs = (
        onnx.helper.make_tensor_value_info(name, kind, ["batch", *rest])
        for name, kind, rest in (("images", onnx.TensorProto.UINT8, [40, 90, 1]), ("probabilities", onnx.TensorProto.FLOAT, [64]))
    )
    sizes = onnx.helper.make_tensor("sizes", onnx.TensorProto.INT64, [4], [1, 1, 8, 8])
    nodes = [
        onnx.helper.make_node("Transpose", ["images"], ["planes"], perm=[0, 3, 1, 2]),
        onnx.helper.make_node("Cast", ["planes"], ["floats"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Resize", ["floats", "", "", "sizes"], ["resized"], mode="linear", antialias=1, exclude_outside=1),
        onnx.helper.make_node("Flatten", ["resized"], ["probabilities"]),
    ]
    graph = onnx.helper.make_graph(nodes, "resize", [inputs], [outputs], [sizes])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), tmp_path / "model.onnx"
    )
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 90, 1), dtype=np.uint8)
    page = opened(tmp_path, '<!doctype html><script src="ort.wasm.min.js"></script>')
    found = page.evaluate(RUN, [base64.b64encode(image.tobytes()).decode(), list(image.shape)])
    (expected,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"images": image})
    np.testing.assert_array_equal(np.float32(found), expected[0])
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(image[..., 0]).float()[None], (8, 8), mode="bilinear", antialias=True
    )
    np.testing.assert_allclose(expected[0], smooth.flatten(), atol=1e-3)


def test_the_page_of_the_docs_names_the_class(folder: Path, opened: Open) -> None:
    (html,) = re.findall(r"```html\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    page = opened(folder, html)
    pixels = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    page.set_input_files("input", {"name": "a.png", "mimeType": "image/png", "buffer": encode(Image.fromarray(pixels), "PNG")})
    page.wait_for_function("document.querySelector('output').textContent")
    (expected,) = onnxruntime.InferenceSession(folder / "model.onnx").run(["probabilities"], {"images": pixels[None]})
    label, percent = page.inner_text("output").split(": ")
    assert (label, percent) == (f"class {expected.argmax()}", f"{100 * expected.max():.1f} %")
