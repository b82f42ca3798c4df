"""Pretrained weights bring their preprocessing: the pixels are those of the library's own transforms, unless the user says otherwise."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
import torchvision
from marks import slow_but
from PIL import Image
from processes import run_command
from untrained_run import save_untrained_run

from imgrec.config.load import load_config
from imgrec.config.schema import RunConfig
from imgrec.data.decode import Preprocessing, load_image
from imgrec.data.preprocess import Preprocess
from imgrec.inference.predictor import load
from imgrec.models.torchvision import torchvision_names
from imgrec.train import fit
from imgrec.training.transfer import expected_input, input_sentence

TORCHVISION = "imgrec.models.torchvision.torchvision_net"
TIMM = "imgrec.models.timm.timm_net"


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """ROOT/cat/photo.png and ROOT/dog/photo.png of 500x420 smooth pixels, as photos have."""
    root = tmp_path_factory.mktemp("photos")
    coarse = np.random.default_rng(0).integers(0, 256, (21, 25, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((500, 420), Image.Resampling.BICUBIC)
    for name in ("cat", "dog"):
        (root / name).mkdir()
        picture.save(root / name / "photo.png")
    return root / "cat" / "photo.png"


@pytest.fixture
def configured(photo):
    """configured(WORD, ...): the config of a run on the photos."""
    return lambda *words: load_config("train", ["data=imagefolder", f"data.root={photo.parents[1]}", *words])


def pixels(run: RunConfig, file) -> torch.Tensor:
    """Float [C, S, S], what the network sees of a file."""
    data = run.data.to_node()
    image = load_image(str(file), Preprocessing(**{key: data[key] for key in Preprocessing.__annotations__}))
    steps = {key: data[key] for key in ("image_size", "mean", "std", "interpolation")}
    return Preprocess(**steps)(image[None])[0]


def assert_same_picture(found: torch.Tensor, expected: torch.Tensor, std: list[float]) -> None:
    assert found.shape == expected.shape
    levels = (found - expected) * torch.tensor(std)[:, None, None] * 255
    assert levels.abs().max() < 3.5
    assert levels.abs().mean() < 0.5


@pytest.mark.parametrize(
    "words",
    slow_but(
        "resnet18 DEFAULT", "efficientnet_b2 DEFAULT",
        among=("resnet18 DEFAULT", "resnet50 DEFAULT", "resnet50 IMAGENET1K_V1", "vgg16_bn DEFAULT", "efficientnet_b2 DEFAULT",
               "vit_h_14 IMAGENET1K_SWAG_E2E_V1", "maxvit_t DEFAULT", "swin_v2_t DEFAULT", "googlenet DEFAULT", "inception_v3 DEFAULT"),
    ),
)  # fmt: skip
def test_pixels_are_those_of_torchvisions_transforms(configured, photo, words):
    name, weights = words.split()
    ours = name in ("resnet18", "resnet50", "vgg16_bn", "googlenet")  # named without torchvision
    model = [f"model={name}"] if ours else ["model=torchvision", f"model.name={name}"]
    run = configured(*model, f"weights={weights}")
    expected = torchvision.models.get_model_weights(name)[weights].transforms()
    with Image.open(photo) as picture:
        assert_same_picture(pixels(run, photo), expected(picture), expected.std)
    if "image_size" in run.model:
        assert [run.model["image_size"]] == expected.crop_size


@pytest.mark.parametrize(
    "name",
    slow_but(
        "vit_base_patch16_224", "vit_base_patch16_siglip_384",
        among=("vit_base_patch16_224", "vit_base_patch16_siglip_384", "resnet50", "resnet50.tv_in1k", "inception_v3",
               "convnext_tiny", "mobilenetv3_large_100", "efficientnet_b0", "vit_base_patch16_clip_224"),
    ),
)  # fmt: skip
def test_pixels_are_those_of_timms_transforms(configured, photo, name):
    run = configured("model=timm", f"model.name={name}", "weights=DEFAULT")
    known = timm.get_pretrained_cfg(name)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=known.to_dict()))
    with Image.open(photo) as picture:
        assert_same_picture(pixels(run, photo), transform(picture), known.std)
    assert run.model["image_size"] == known.input_size[-1]


def test_every_set_of_weights_has_keys_of_data():
    for name in torchvision_names():
        for weights in torchvision.models.get_model_weights(name):
            if weights.meta["categories"]:
                found, steps = expected_input(weights.name, {"_target_": TORCHVISION, "name": name}), weights.transforms()
                assert (found["mean"], found["std"], [found["image_size"]]) == (steps.mean, steps.std, steps.crop_size)
                assert [round(found["image_size"] / found["crop_share"])] == steps.resize_size
                assert found["interpolation"] == steps.interpolation.value
    odd = 0
    for name in timm.list_pretrained():
        found = expected_input("DEFAULT", {"_target_": TIMM, "name": name})
        steps = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        assert (tuple(found["mean"]), tuple(found["std"])) == (steps["mean"], steps["std"])
        assert (found["image_size"], found["interpolation"]) == (steps["input_size"][-1], steps["interpolation"])
        assert (found["resize"] == "squash") == (steps["crop_mode"] == "squash")
        odd += found["mean"] != [0.485, 0.456, 0.406]
    assert odd > 600


def test_what_the_user_says_stays_and_is_told(configured, tmp_path):
    words = ("model=timm", "model.name=vit_base_patch16_224", "weights=DEFAULT")
    run = configured(*words)
    assert input_sentence(run) == (
        "as these weights expect: image_size=224, mean=[0.5,0.5,0.5], std=[0.5,0.5,0.5], resize=crop, "
        f"crop_share={224 / 248}, interpolation=bicubic"
    )
    own = configured(*words, "data.mean=[0.1,0.2,0.3]", "data.image_size=224", "data.resize=squash")
    assert (own.data.mean, own.data.std, own.data.resize) == ([0.1, 0.2, 0.3], [0.5] * 3, "squash")
    same, *other = input_sentence(own).split("; ")
    assert same == "as these weights expect: image_size=224, std=[0.5,0.5,0.5], interpolation=bicubic"
    assert other == ["data.mean=[0.1,0.2,0.3] is not their [0.5,0.5,0.5]", "data.resize=squash is not their crop"]
    # A recipe's values are the user's too, also where they are the usual ones.
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ndata:\n  std: [0.229, 0.224, 0.225]\n")
    recipe = load_config(
        "train", ["experiment=mine", f"data.root={configured().data.own['root']}", "data=imagefolder", *words], tmp_path
    )
    assert (recipe.data.mean, recipe.data.std) == ([0.5] * 3, [0.229, 0.224, 0.225])


def test_without_weights_the_yaml_holds_and_for_sets_in_memory_with_them(configured):
    plain = configured().data
    assert (plain.image_size, plain.mean, plain.crop_share) == (224, [0.485, 0.456, 0.406], 0.875)
    assert configured().weights is None
    # Images of a set in memory keep their size; the start screen says that these weights expect another.
    digits = load_config("train", ["data=digits", "data.channels=3", "data.mean=[0.1,0.1,0.1]", "data.std=[1,1,1]", "model=timm", "weights=DEFAULT"])  # fmt: skip
    assert digits.data.image_size == 8
    assert "data.image_size=8 is not their" in input_sentence(digits)


def test_weights_of_a_run_bring_what_it_recorded(configured, tmp_path):
    own = ("data.mean=[0.1,0.2,0.3]", "data.std=[1,1,1]", "data.image_size=48", "data.interpolation=bicubic")
    run = save_untrained_run(tmp_path / "run", "data.channels=3", *own)
    found = configured("model=simple_cnn", f"weights={run}")
    assert (found.data.mean, found.data.image_size, found.data.resize) == ([0.1, 0.2, 0.3], 48, "squash")
    assert found.model["image_size"] == 48
    assert ";" not in input_sentence(found)
    other = configured("model=simple_cnn", f"weights={run}", "data.std=[2,2,2]")
    assert input_sentence(other).endswith("; data.std=[2.0,2.0,2.0] is not their [1.0,1.0,1.0]")
    gray = save_untrained_run(tmp_path / "gray")  # whose mean is that of one channel
    assert configured("model=simple_cnn", f"weights={gray}").data.mean == [0.485, 0.456, 0.406]


def test_the_weights_of_a_run_are_read_once(small, tmp_path, monkeypatch):
    """For the keys of the data, the network and the start screen; and again where the file was written anew."""
    own = ("data.mean=[0.5,0.5,0.5]", "data.std=[1,1,1]")
    run, read, torch_load = save_untrained_run(tmp_path / "run", "data.channels=3", "data.image_size=16", *own), [], torch.load
    monkeypatch.setattr(torch, "load", lambda file, **keys: read.append(Path(file)) or torch_load(file, **keys))
    words = ("model=simple_cnn", "model.widths=[4,8]", "model.dense=16", f"weights={run}")
    best = run / "checkpoints/best.ckpt"
    for name, is_new in (("a", False), ("b", True)):
        read.clear()
        settings = small(*words, f"id={name}")
        if is_new:
            os.utime(best, ns=(0, 0))
        result = fit(settings, quiet=True)
        assert read.count(best) == 1 + is_new
        rows = [line.partition(" ")[0] for line in (Path(result.folder) / "log.txt").read_text().splitlines()]
        assert (rows.count("weights"), rows.count("input")) == (1, 1)


def test_a_start_that_is_refused_imports_no_torch():
    code = (
        "import sys; from imgrec import config\n"
        "run = config.load('train', ['data=imagefolder', 'data.root=no_such_folder', 'weights=DEFAULT'])\n"
        "print(run.data.image_size, 'torch' in sys.modules)"
    )
    assert run_command(sys.executable, "-c", code).stdout == "224 False\n"


def test_a_checkpoint_records_the_interpolation_that_prediction_uses(photo, tmp_path):
    colour = ("data.channels=3", "data.mean=[0,0,0]", "data.std=[1,1,1]", "data.image_size=48")
    inputs = []
    for name in ("bilinear", "bicubic"):
        run = save_untrained_run(tmp_path / name, *colour, f"data.interpolation={name}")
        predictor = load(run, device="cpu")
        inputs.append((predictor.preprocess(photo)[0] * 255).round().int())
        with Image.open(photo) as picture:
            expected = picture.resize((48, 48), Image.Resampling[name.upper()])
        assert (inputs[-1] - torch.from_numpy(np.array(expected)).permute(2, 0, 1)).abs().max() <= 3
        large = torch.from_numpy(np.array(Image.open(photo))).permute(2, 0, 1)[None]
        assert (predictor.preprocess_batch(large)[0] * 255 - inputs[-1]).abs().max() <= 1  # resized on the device
    assert (inputs[0] - inputs[1]).abs().max() > 3
