"""imgrec.load(path): the same answer for the same picture, in whatever form it is given."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from error_parts import raises_error
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from marks import slow_but
from PIL import Image
from untrained_run import CLASSES, save_untrained_run

import imgrec
from imgrec.config.instantiate import instantiate
from imgrec.config.options import option_names
from imgrec.data import decode
from imgrec.errors import CheckpointError, ConfigError, DataError
from imgrec.inference.checkpoint import load_checkpoint
from imgrec.inference.device import Halving
from imgrec.inference.predictor import Predictor
from imgrec.models.layers import head_names

LIBRARIES = {"timm", "torchvision"}  # whose networks are chosen by model.name
RGB = ("data.channels=3", "data.mean=[0.3,0.4,0.5]", "data.std=[0.2,0.3,0.4]")


@pytest.fixture(scope="module")
def gray(tmp_path_factory):
    return imgrec.load(save_untrained_run(tmp_path_factory.mktemp("gray")), device="cpu")


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    return imgrec.load(
        save_untrained_run(tmp_path_factory.mktemp("colour"), *RGB, "data.resize=crop", "data.crop_share=0.875"), device="cpu"
    )


def picture(height, width, channels=None, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels)[: 2 + (channels is not None)], dtype=np.uint8)


def test_probabilities_are_the_networks_own(gray):
    images = torch.from_numpy(picture(5, 64)).view(5, 1, 8, 8)
    run = gray.checkpoint.run
    net = instantiate(run.model, num_classes=len(CLASSES))
    state = gray.checkpoint.content["state_dict"]
    net.load_state_dict({key[4:]: value for key, value in state.items() if key.startswith("net.")})
    pixels = (images / 255 - run.data.mean[0]) / run.data.std[0]
    with torch.no_grad():
        expected = net.eval()(pixels).softmax(1)
    torch.testing.assert_close(gray.probabilities(images), expected, rtol=1e-5, atol=0)


def test_every_form_of_a_picture_has_the_same_answer(colour, tmp_path):
    pixels = picture(13, 10, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    forms = [
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        Image.open(tmp_path / "a.png"),
        Image.fromarray(pixels),
        pixels,
        tensor,
        tensor[None],
    ]
    answers = [colour.predict(form, top_k=10) for form in forms]
    assert all(answer == answers[0] for answer in answers)
    first = colour.predict(forms[:6], top_k=10)
    for answer in first:  # six in one batch
        assert [name for name, _ in answer.top] == [name for name, _ in answers[0][0].top]
        assert answer.probability == pytest.approx(answers[0][0].probability, rel=1e-5)
    assert colour.predict(pixels[None]) == colour.predict(pixel for pixel in [pixels]) == colour.predict(pixels)
    assert colour.probabilities(tensor[None, :, :8, :8])[0].sum() == pytest.approx(1, abs=1e-6)


def test_embeddings_are_what_the_head_gets(gray, colour):
    images = [picture(9, 7, seed=seed) for seed in range(5)]
    features = gray.embed(images, batch_size=2)
    head = gray.model.get_submodule(head_names(gray.model, len(CLASSES))[-1])
    assert features.shape == (5, head.in_features)
    chances = torch.stack(
        [torch.tensor([dict(answer.top)[name] for name in CLASSES]) for answer in gray.predict(images, top_k=10)]
    )
    with torch.no_grad():
        torch.testing.assert_close(head(features).softmax(1), chances, rtol=1e-5, atol=1e-6)
    batch = np.stack(images)
    assert torch.equal(gray.embed(batch[..., None]), gray.embed(images))
    assert torch.equal(gray.embed(batch), gray.embed(images))
    assert [gray.predict(batch[:count]) == gray.predict(images[:count]) for count in (1, 2, 4, 5)] == [True] * 4
    assert colour.embed(Image.fromarray(images[0])).shape == colour.embed(images[0]).shape == (1, head.in_features)
    assert gray.embed([]).shape[0] == 0
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("name", slow_but("lenet", "resnet20", "speed_cnn", among=sorted(set(option_names("model")) - LIBRARIES)))
def test_the_network_of_any_choice_can_be_used_elsewhere(tmp_path, name):
    found = imgrec.load(
        save_untrained_run(tmp_path, "data.image_size=32", *RGB, tiny=("data=digits", f"model={name}")), device="cpu"
    )
    images = [picture(40, 30, 3, seed=seed) for seed in range(3)]
    pixels = found.preprocess(images)
    assert (pixels.dtype, pixels.shape) == (torch.float32, (3, 3, 32, 32))
    fitted = torch.stack([decode.fit_to_size(torch.from_numpy(image).permute(2, 0, 1), found.preprocessing) for image in images])
    with torch.no_grad():
        logits = found.model(pixels)
        assert torch.equal(logits, found.logits(fitted))
        assert torch.equal(logits.softmax(1), found.probabilities(fitted))
        # The features by another way: the network without its head.
        bare = copy.deepcopy(found.model)
        bare.set_submodule(head_names(bare, len(CLASSES))[-1], torch.nn.Identity())
        torch.testing.assert_close(found.embed(images), bare(pixels) / getattr(bare, "scale", 1), rtol=1e-6, atol=1e-6)


def test_preprocess_takes_what_predict_takes(colour, tmp_path):
    pixels = picture(13, 10, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    middle = decode.fit_to_size(torch.from_numpy(pixels).permute(2, 0, 1), colour.preprocessing)  # resized and cropped
    mean, std = (torch.tensor(colour.preprocessing[key]).view(3, 1, 1) for key in ("mean", "std"))
    for form in (tmp_path / "a.png", pixels, [Image.fromarray(pixels)]):
        torch.testing.assert_close(colour.preprocess(form)[0], (middle / 255 - mean) / std)
    assert colour.preprocess([]).shape[0] == 0


def test_the_pages_example_gives_the_probabilities_of_predict(gray, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(picture(9, 8, seed=ord(name[0]))).save(name)
    page = (Path(__file__).parents[1] / "docs" / "python-api.md").read_text()
    (block,) = re.findall(r"```python\n(inputs = .*?)```", page, re.DOTALL)
    exec(block, names := {"predictor": gray})
    for row, answer in zip(names["probabilities"], gray.predict(["a.jpg", "b.jpg"], top_k=10), strict=True):
        expected = torch.tensor([dict(answer.top)[name] for name in CLASSES])
        torch.testing.assert_close(row, expected)
    assert names["logits"].requires_grad


def test_a_map_before_the_head_is_averaged(tmp_path):
    words = ("model=torchvision", "model.name=squeezenet1_1", "data.image_size=32", *RGB)
    found = imgrec.load(save_untrained_run(tmp_path, *words, tiny=()), device="cpu")
    assert found.embed(picture(40, 30, 3)).shape == (1, 512)  # the paper's 512 channels, of 1x1 pixels


def test_what_is_given_is_listed(gray):
    assert {"classes", "embed", "evaluate", "model", "predict", "probabilities"} < set(dir(gray))
    assert isinstance(gray.model, torch.nn.Module)
    assert all(
        part in repr(gray) for part in (str(gray.checkpoint.file), "SimpleCNN", "10 classes (0, 1, 2, ...)", "8x8x1", "cpu")
    )


@pytest.mark.parametrize("shape", [(4, 400), (400, 4), (10, 1000), (16, 1024)])
def test_a_strip_cut_before_it_is_resized_is_the_same(colour, monkeypatch, shape):
    strip = torch.from_numpy(picture(*shape, 3)).permute(2, 0, 1)
    cut = decode.fit_to_size(strip, colour.preprocessing)
    monkeypatch.setattr(decode, "MAX_ASPECT", 10**9)
    assert (cut.int() - decode.fit_to_size(strip, colour.preprocessing)).abs().max() <= 1


def test_a_very_long_strip_takes_little_memory(colour):
    assert len(colour.predict(picture(1, 1_000_000, 3))) == 1  # resized whole, it would be 9 x 9,000,000


def test_channels_are_converted(gray, colour):
    shade = picture(8, 8)
    assert colour.predict(shade) == colour.predict(np.stack([shade] * 3, axis=-1))
    assert (
        gray.predict(shade)
        == gray.predict(shade[..., None])
        == gray.predict(torch.from_numpy(shade)[None])
        == gray.predict(Image.fromarray(shade))
    )


def test_an_image_lying_on_its_side_is_turned(gray, tmp_path):
    image = Image.fromarray(picture(8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    assert gray.predict(tmp_path / "turned.png") == gray.predict(image.rotate(-90))
    assert gray.predict(Image.open(tmp_path / "turned.png")) == gray.predict(image.rotate(-90))


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.just(1), st.just(8), st.just(8))), st.integers(1, 4), st.integers(1, 12))
def test_any_batch_and_top_k(gray, images, batch_size, top_k):
    batch = torch.from_numpy(images)
    chances = gray.probabilities(batch)
    answers = gray.predict(batch, top_k=top_k, batch_size=batch_size)
    assert len(answers) == len(batch)
    for row, answer in zip(chances, answers, strict=True):
        values = [value for _, value in answer.top]
        assert len(values) == min(top_k, 10)
        assert values == sorted(values, reverse=True)
        assert values == pytest.approx(row.sort(descending=True).values[:top_k].tolist(), abs=1e-6)
        assert answer.top[0] == (answer.class_name, answer.probability)
        assert row[CLASSES.index(answer.class_name)] == pytest.approx(answer.probability, abs=1e-6)


def test_of_equal_classes_the_first_is_named_as_argmax_does(gray):
    (answer,) = gray.ranked(torch.tensor([[0.1, 0.3, 0.3, 0.3]]), 3)
    assert [name for name, _ in answer.top] == ["1", "2", "3"]


@pytest.mark.parametrize("loss", slow_but("bce", "cross_entropy", among=["bce", "mse", "focal", "cross_entropy"]))
def test_every_loss_answers_without_the_counts_that_balance_it(tmp_path, loss):
    found = imgrec.load(save_untrained_run(tmp_path, f"loss={loss}", "loss.class_weights=balanced"), device="cpu")
    chances = found.probabilities(torch.from_numpy(picture(3, 64)).view(3, 1, 8, 8))
    torch.testing.assert_close(chances.sum(1), torch.ones(3))


def test_nothing_given_is_nothing_answered(gray):
    assert gray.predict([]) == []
    assert gray.probabilities(torch.empty(0, 1, 8, 8, dtype=torch.uint8)).shape == (0, 10)


def test_loading_leaves_the_random_numbers_alone(gray):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Predictor(gray.checkpoint, device="cpu")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.slow
def test_weights_that_the_run_began_with_are_not_fetched_again(tmp_path, monkeypatch):
    def fetch(*args, **keywords):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    model = ("model=torchvision", "model.name=squeezenet1_1", "weights=DEFAULT", "data.image_size=32", *RGB)
    run = tmp_path / "run"
    from imgrec import config  # TINY's model.widths belong to another network
    from imgrec.training.checkpoint import CheckpointWriter, checkpoint_metadata

    settings = config.load("train", ["data=digits", *model]).with_classes(10)
    state = {f"net.{key}": value for key, value in instantiate(settings.model, num_classes=len(CLASSES)).state_dict().items()}
    keys = ("image_size", "channels", "mean", "std", "resize", "crop_share", "interpolation", "max_pixels", "scale")
    writer = CheckpointWriter(checkpoint_metadata(settings, CLASSES, {key: getattr(settings.data, key) for key in keys}))
    writer.save_checkpoint({"state_dict": state, "epoch": 0}, run / "best.ckpt")
    writer.wait()
    assert len(imgrec.load(run, device="cpu").predict(picture(40, 30, 3), top_k=4)[0].top) == 4


def test_16_bit_precision_answers_much_the_same(gray):
    half = Predictor(gray.checkpoint, device="cpu", precision="16-mixed")
    assert half.precision == "bf16-mixed"  # what Lightning makes of it on a CPU
    images = torch.from_numpy(picture(20, 64)).view(20, 1, 8, 8)
    assert half.probabilities(images).dtype == torch.float32
    torch.testing.assert_close(half.probabilities(images), gray.probabilities(images), atol=0.01, rtol=0)
    assert not torch.equal(half.probabilities(images), gray.probabilities(images))


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((8, 8)), "float64 [8, 8]"),
        (np.zeros((0, 8), np.uint8), "uint8 [0, 8]"),
        (torch.zeros(1, 8, 8), "float32 [1, 8, 8]"),
        (torch.zeros(8, 8, dtype=torch.uint8), "uint8 [8, 8]"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), "uint8 [4, 8, 8]"),
        ([3], "of type int"),
        (np.zeros((2, 1, 8, 8), np.uint8), "uint8 [1, 8, 8]"),
        (np.zeros((3, 8, 8), np.uint8), "uint8 [3, 8, 8]"),  # three in gray, or one in colour
    ],
)
def test_what_is_no_picture_is_refused(gray, image, found):
    taken = (
        "uint8",
        "[H, W], [H, W, 1] or [H, W, 3]",
        "[1, H, W] or [3, H, W]",
        "0 to 255",
        "PIL",
        "[B, H, W, C]",
        "[B, C, H, W]",
    )
    with raises_error(DataError, "an image", found, *taken):
        gray.predict(image)


def test_other_refusals(gray, tmp_path):
    with raises_error(DataError, "none.png", "No such file"):
        gray.predict("none.png")
    with raises_error(DataError, "images", "float32 [1, 1, 8, 8]", "uint8 [B, 1, H, W]"):
        gray.probabilities(torch.zeros(1, 1, 8, 8))
    with raises_error(ConfigError, "top_k=0", "1 or more"):
        gray.predict(picture(8, 8), top_k=0)
    for size in (0, -1, "64", None):
        for call in (gray.predict, gray.embed):
            with raises_error(ConfigError, f"batch_size={size}", "1 or more", "batch_size=64"):
                call(picture(8, 8), batch_size=size)
    with raises_error(ConfigError, "batch_size=0", "1 or more"):
        gray.evaluate(batch_size=0)
    for count in (-1, "many", None, 0.5, True):
        for call in (gray.evaluate, lambda **keys: list(gray.predict_files(["none.png"], **keys))):
            with raises_error(ConfigError, f"num_workers={count}", "0 or more", "num_workers='auto'"):
                call(num_workers=count)
    with raises_error(ConfigError, "data=5", "a group of keys"):
        gray.evaluate(data=5)
    with raises_error(DataError, "images", "of type int", "a path"):
        list(gray.predict_files(5))
    assert len(list(gray.predict_files("none.png"))) == 1
    with raises_error(DataError, "images", "of type list", "uint8 [B, 1, H, W]"):
        gray.probabilities([picture(8, 8)])
    with raises_error(ConfigError, "precision=fp16", "32, bf16-mixed, 16-mixed or null"):
        Predictor(gray.checkpoint, device="cpu", precision="fp16")
    assert Predictor(gray.checkpoint, device=torch.device("cpu")).device == gray.device
    with raises_error(DataError, "images", "of type int", "a path"):
        gray.predict(5)
    with raises_error(ConfigError, "path=5", "imgrec.load('runs/NAME/ID')"):
        imgrec.load(5)
    with raises_error(CheckpointError, tmp_path / "none", ".ckpt", "runs/NAME/ID"):
        imgrec.load(tmp_path / "none")


def test_a_device_that_is_not_there_is_named(gray, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with raises_error(ConfigError, "device=cuda", "cpu", "device=auto"):
        Predictor(gray.checkpoint, device="cuda")


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")],
)
def test_where_memory_runs_out_fewer_images_are_computed_at_once(gray, monkeypatch, error):
    def forward(pixels):
        sizes.append(len(pixels))
        if len(pixels) > most:
            raise error
        return whole(pixels)

    sizes, most, whole = [], 3, gray.model.forward
    images = torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8)
    expected, features = gray.probabilities(images), gray.embed(images)
    monkeypatch.setattr(gray, "halving", Halving())
    monkeypatch.setattr(gray.model, "forward", forward)
    torch.testing.assert_close(gray.probabilities(images), expected)
    assert sizes == [9, 4, 2, 2, 2, 2, 1]
    sizes.clear()
    torch.testing.assert_close(gray.embed(images), features)
    assert sizes == [2, 2, 2, 2, 1]  # what it has learned
    most = 0
    with raises_error(ConfigError, "device=cpu", "a single image"):
        gray.probabilities(images)


def test_weights_of_another_network_are_refused(tmp_path):
    run = save_untrained_run(tmp_path)
    file = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["imgrec"]["config"]["model"]["dense"] = 17
    torch.save(checkpoint, file)
    with raises_error(CheckpointError, file, "size mismatch", "Train again"):
        imgrec.load(run)
    checkpoint["imgrec"]["config"]["model"]["depht"] = 3
    torch.save(checkpoint, file)
    with raises_error(CheckpointError, file, "depht"):
        imgrec.load(run)


def test_an_answer_that_is_no_number_is_refused(tmp_path):
    found = imgrec.load(save_untrained_run(tmp_path), device="cpu")
    with torch.no_grad():
        next(found.model.parameters()).fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"not a number.*Train again.*optim\.lr"):
        found.predict(picture(8, 8))


def test_the_stored_dictionary_is_enough(gray):
    assert load_checkpoint(gray.checkpoint.file).classes == gray.classes == CLASSES
