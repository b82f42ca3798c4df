"""Networks against torchvision's outputs, published parameter counts and operations, and the paper's formulas."""

import csv
import json
import re
import sys

import pytest
import torch
import torchvision
from error_parts import assert_refused, raises_error
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow_but
from torch import nn

from imgrec import cli
from imgrec.config.instantiate import instantiate
from imgrec.config.load import load_config
from imgrec.config.options import option_names
from imgrec.errors import ConfigError
from imgrec.models import __main__ as models_command
from imgrec.models.alexnet import alexnet
from imgrec.models.catalog import CatalogQuery, candidates, measure_network, weightless
from imgrec.models.channels import input_kernels
from imgrec.models.densenet import densenet
from imgrec.models.googlenet import googlenet
from imgrec.models.lenet import LeNet
from imgrec.models.resnet import CIFAR_DEPTHS, PaddedShortcut, resnet
from imgrec.models.simple_cnn import SimpleCNN
from imgrec.models.summary import measure_size
from imgrec.models.timm import timm_net
from imgrec.models.torchvision import torchvision_names, torchvision_net
from imgrec.models.vgg import vgg

SLOW = pytest.mark.slow


def build_resnet(depth, *, num_classes=10, channels=3, stem="imagenet", zero=False):
    return resnet(num_classes=num_classes, channels=channels, depth=depth, stem=stem, zero_init_residual=zero)


def build_vgg(depth, *, num_classes=10, channels=3, batch_norm=True, head="small"):
    return vgg(num_classes=num_classes, channels=channels, depth=depth, batch_norm=batch_norm, head=head, dropout=0.5)


def simple_cnn(**changes):
    shape = {"num_classes": 10, "channels": 3, "image_size": 32, "widths": [32, 64], "padding": ["valid"], "kernel": 3}
    return SimpleCNN(**shape | {"norm": "none", "dense": 128, "stage_dropout": 0.0, "dense_dropout": 0.0} | changes)


def assert_same_outputs(ours, theirs, images):
    """Same outputs, and in train mode the same gradients and batch norm statistics, bit for bit."""
    ours.load_state_dict(theirs.state_dict())
    for training in (False, True):
        ours.train(training)
        theirs.train(training)
        results = []
        for net in (ours, theirs):
            torch.manual_seed(7)  # dropout
            results.append(net(images))
        torch.testing.assert_close(*results, rtol=0, atol=0)
        assert results[0].std() > 0
    for result in results:
        result.square().sum().backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=0, msg=name)
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()), rtol=0, atol=0)


@pytest.mark.parametrize("depth", [18, *(pytest.param(depth, marks=SLOW) for depth in (34, 50, 101, 152))])
def test_resnet_gives_torchvisions_outputs(depth):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(f"resnet{depth}", num_classes=10)
    assert_same_outputs(build_resnet(depth), theirs, torch.rand(2, 3, 33, 33))


@pytest.mark.parametrize(
    ("depth", "batch_norm"), [(11, True), *(pytest.param(*kind, marks=SLOW) for kind in ((13, False), (16, True), (19, False)))]
)
def test_vgg_gives_torchvisions_outputs(depth, batch_norm):
    torch.manual_seed(0)
    with torch.device("meta"):
        nets = [
            torchvision.models.get_model(f"vgg{depth}{'_bn' if batch_norm else ''}", num_classes=10, init_weights=False),
            build_vgg(depth, batch_norm=batch_norm, head="imagenet"),
        ]
    theirs, ours = nets[0].to_empty(device="cpu"), nets[1]  # initial values of 130 million weights would take the time
    drawn = torch.empty(65_537).uniform_(-0.05, 0.05)  # a prime number of them, repeated
    for parameter in theirs.parameters():
        parameter.data = drawn.repeat(parameter.numel() // len(drawn) + 1)[: parameter.numel()].view_as(parameter)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    images = torch.rand(1, 3, 32, 32)
    for training in (False, True):
        results = []
        for net in (ours, theirs):
            torch.manual_seed(7)
            with torch.no_grad():
                results.append(net.train(training)(images if not (training and batch_norm) else images.expand(2, -1, -1, -1)))
        torch.testing.assert_close(*results, rtol=0, atol=0)
        assert results[0].std() > 0


@pytest.mark.parametrize(("depth", "zero"), slow_but((18, True), (18, False), among=[(18, True), (18, False), (50, False)]))
def test_resnet_draws_torchvisions_first_weights(depth, zero):
    torch.manual_seed(3)
    theirs = torchvision.models.get_model(f"resnet{depth}", num_classes=10, zero_init_residual=zero)
    torch.manual_seed(3)
    torch.testing.assert_close(build_resnet(depth, zero=zero).state_dict(), theirs.state_dict(), rtol=0, atol=0)


@pytest.mark.slow
def test_vgg_draws_torchvisions_first_weights():
    torch.manual_seed(3)
    theirs = torchvision.models.vgg11_bn(num_classes=10)
    torch.manual_seed(3)
    torch.testing.assert_close(build_vgg(11, head="imagenet").state_dict(), theirs.state_dict(), rtol=0, atol=0)


PUBLISHED = {  # torchvision's documentation: parameters, and GFLOPS, which are 10^9 multiply-adds
    "resnet18": (lambda: build_resnet(18, num_classes=1000), 11_689_512, 1.814),
    "resnet34": (lambda: build_resnet(34, num_classes=1000), 21_797_672, 3.664),
    "resnet50": (lambda: build_resnet(50, num_classes=1000), 25_557_032, 4.089),
    "resnet101": (lambda: build_resnet(101, num_classes=1000), 44_549_160, 7.801),
    "resnet152": (lambda: build_resnet(152, num_classes=1000), 60_192_808, 11.514),
    "vgg11": (lambda: build_vgg(11, num_classes=1000, batch_norm=False, head="imagenet"), 132_863_336, 7.609),
    "vgg13": (lambda: build_vgg(13, num_classes=1000, batch_norm=False, head="imagenet"), 133_047_848, 11.308),
    "vgg16": (lambda: build_vgg(16, num_classes=1000, batch_norm=False, head="imagenet"), 138_357_544, 15.47),
    "vgg19_bn": (lambda: build_vgg(19, num_classes=1000, head="imagenet"), 143_678_248, 19.632),
    "alexnet": (lambda: alexnet(num_classes=1000, channels=3, stem="imagenet", dropout=0.5), 61_100_840, 0.714),
    "googlenet": (lambda: googlenet(num_classes=1000, channels=3, stem="imagenet", dropout=0.2), 6_624_904, 1.498),
    "densenet121": (lambda: build_densenet(121, "imagenet", num_classes=1000), 7_978_856, 2.834),
    "vit_b_16": (lambda: from_torchvision("vit_b_16", 224, num_classes=1000), 86_567_656, 17.564),
    "regnet_y_400mf": (lambda: from_torchvision("regnet_y_400mf", 224, num_classes=1000), 4_344_144, 0.402),
}


def from_torchvision(name, image_size, *, num_classes=10, channels=3):
    return torchvision_net(name=name, num_classes=num_classes, channels=channels, image_size=image_size)


def from_timm(name, image_size, *, channels=3):
    return timm_net(name=name, num_classes=10, channels=channels, image_size=image_size)


def build_densenet(depth, stem, *, num_classes=10, channels=3):
    return densenet(num_classes=num_classes, channels=channels, depth=depth, stem=stem, dropout=0.0, memory_efficient=False)


@pytest.mark.parametrize("name", slow_but("resnet18", "resnet50", "vgg11", "alexnet", "googlenet", "vit_b_16", among=PUBLISHED))
def test_parameters_and_operations_are_the_published_ones(name):
    build, parameters, giga_macs = PUBLISHED[name]
    with weightless():
        net = build()
    size = measure_size(net, channels=3, image_size=224)
    assert size.parameters == parameters
    assert size.flops / 2e9 == pytest.approx(giga_macs, abs=0.0011)


@pytest.mark.parametrize("depth", slow_but(20, among=CIFAR_DEPTHS))
def test_cifar_family_has_the_papers_parameters(depth):
    n = (depth - 2) // 6  # section 4.2: 6n + 2 layers of widths 16, 32, 64, shortcuts without parameters; a norm has two each
    convs = 9 * (3 * 16 + 2 * n * 16**2 + 16 * 32 + (2 * n - 1) * 32**2 + 32 * 64 + (2 * n - 1) * 64**2)
    norms = 2 * (16 + 2 * n * (16 + 32 + 64))
    with weightless():
        net = build_resnet(depth, stem="small")
    assert measure_size(net, channels=3, image_size=32).parameters == convs + norms + 64 * 10 + 10
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in net.modules()) == depth
    assert depth != 20 or convs + norms + 650 == 269_722


def test_padded_shortcut_strides_and_pads():
    x = torch.rand(2, 16, 8, 8)
    y = PaddedShortcut(16, 32)(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].abs().sum() == y[:, 24:].abs().sum() == 0


@given(channels=st.sampled_from([1, 3, 6, 9]), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_adapted_kernels_give_the_same_for_gray_images(channels, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(4, 3, 3, 3, generator=generator, dtype=torch.float64)
    grey = torch.rand(2, 1, 5, 5, generator=generator, dtype=torch.float64)
    before = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), weight)
    after = nn.functional.conv2d(grey.expand(-1, channels, -1, -1), input_kernels(weight, channels))
    torch.testing.assert_close(after, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        lambda **k: resnet(depth=18, stem="small", zero_init_residual=False, **k),
        lambda **k: vgg(depth=11, batch_norm=True, head="small", dropout=0.5, **k),
        lambda **k: alexnet(stem="imagenet", dropout=0.5, **k),
        pytest.param(lambda **k: googlenet(stem="imagenet", dropout=0.2, **k), marks=SLOW),
        pytest.param(lambda **k: densenet(depth=121, stem="imagenet", dropout=0.0, memory_efficient=False, **k), marks=SLOW),
        lambda **k: torchvision_net(name="squeezenet1_1", image_size=64, **k),
    ],
)
def test_one_channel_is_three_equal_channels(build):
    nets = []
    for channels in (1, 3):
        torch.manual_seed(5)
        nets.append(build(num_classes=10, channels=channels).eval().double())
    grey = torch.rand(1, 1, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(nets[0](grey), nets[1](grey.expand(-1, 3, -1, -1)))


SMALL = {
    "resnet20": lambda channels, size: build_resnet(20, channels=channels, stem="small"),
    "resnet18": lambda channels, size: build_resnet(18, channels=channels, stem="small"),
    "vgg": lambda channels, size: build_vgg(11, channels=channels),
    "alexnet": lambda channels, size: alexnet(num_classes=10, channels=channels, stem="small", dropout=0.5),
    "googlenet": lambda channels, size: googlenet(num_classes=10, channels=channels, stem="small", dropout=0.2),
    "densenet": lambda channels, size: build_densenet(121, "small", channels=channels),
    "simple_cnn": lambda channels, size: simple_cnn(channels=channels, image_size=size),
    "lenet": lambda channels, size: LeNet(num_classes=10, channels=channels, image_size=size, activation="tanh", pool="average"),
    "torchvision": lambda channels, size: from_torchvision("mobilenet_v3_small", size, channels=channels),
    "timm": lambda channels, size: from_timm("test_vit", size, channels=channels),
}


@pytest.mark.parametrize("name", slow_but("resnet20", "vgg", "simple_cnn", "lenet", "torchvision", "timm", among=SMALL))
@pytest.mark.parametrize(("channels", "size"), slow_but((1, 28), among=[(1, 28), (3, 32)]))
def test_small_images_in_logits_out_and_gradients_everywhere(name, channels, size):
    if name == "timm":
        pytest.importorskip("timm")
        size = 32
    torch.manual_seed(0)
    net = SMALL[name](channels, size)
    logits = net(torch.rand(2, channels, size, size))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


def test_measure_size_does_not_change_the_network():
    net = build_resnet(20, stem="small").train()
    net.layer1.eval()
    modes = [module.training for module in net.modules()]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    measure_size(net, channels=3, image_size=32)
    assert [module.training for module in net.modules()] == modes
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "build", "size", "enough"),
    [
        ("alexnet", lambda: from_torchvision("alexnet", 28), 28, 64),
        ("vgg", lambda: build_vgg(11, head="imagenet"), 8, 32),
        pytest.param("densenet", lambda: build_densenet(121, "imagenet"), 8, 32, marks=pytest.mark.slow),
    ],
)
def test_too_small_images_name_the_size_that_is_enough(name, build, size, enough):
    with weightless():
        net = build()
    with raises_error(ConfigError, f"model {name}", f"{size}x{size}", f"data.image_size={enough}"):
        measure_size(net, channels=3, image_size=size)
    measure_size(net, channels=3, image_size=enough)


@pytest.mark.parametrize(
    ("build", "parts"),
    [
        (lambda: from_torchvision("resnet5", 32), ["model.name=resnet5", "resnet50"]),
        (lambda: from_torchvision("vit_b_16", 100), ["model vit_b_16", "data.image_size=96"]),
        (lambda: from_torchvision("maxvit_t", 100), ["model maxvit_t", "100x100", "data.image_size=224"]),
        (lambda: from_timm("vit_tiny_patch16_224", 28), ["model vit_tiny_patch16_224", "data.image_size=32"]),
        (lambda: from_timm("resnet_50", 64), ["model.name=resnet_50", "resnet50"]),
        (
            lambda: LeNet(num_classes=9, channels=3, image_size=8, activation="relu", pool="max"),
            ["model lenet", "8x8", "data.image_size=12"],
        ),
    ],
)
def test_errors_are_one_line_with_a_suggestion(build, parts):
    with raises_error(ConfigError, *parts):
        build()


def test_without_timm_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r'pip install "imgrec\[timm\]"'):
        timm_net(name="resnet50", num_classes=9, channels=3, image_size=64)


@given(
    stages=st.integers(1, 4),
    padding=st.lists(st.sampled_from(["valid", "same"]), min_size=1, max_size=2),
    kernel=st.sampled_from([1, 3, 5]),
)
@settings(max_examples=25, deadline=None)
def test_simple_cnn_names_the_smallest_size_it_takes(stages, padding, kernel):
    make = {"widths": [2] * stages, "padding": padding, "kernel": kernel, "dense": 3}
    with pytest.raises(ConfigError, match=r"Set data.image_size=") as caught:
        simple_cnn(**make, image_size=1)
    enough = int(str(caught.value).split("data.image_size=")[1].split()[0])
    assert simple_cnn(**make, image_size=enough)(torch.rand(1, 3, enough, enough)).shape == (1, 10)
    with pytest.raises(ConfigError):
        simple_cnn(**make, image_size=enough - 1)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_simple_cnn_computes_the_bits_of_the_textbooks_order(norm):
    """Convolution, norm, ReLU and then the pooling: in the forward and in the backward pass."""
    torch.manual_seed(0)
    net = simple_cnn(image_size=20, widths=[6, 8], padding=["same", "valid"], norm=norm, dense=0)
    textbook = []
    for module in net.features:
        if isinstance(module, nn.MaxPool2d):
            textbook += [nn.ReLU(), module]
        elif not (isinstance(module, nn.ReLU) and isinstance(textbook[-1], nn.MaxPool2d)):
            textbook.append(module)
    kinds = "".join(type(module).__name__[0] for module in textbook)
    assert kinds == 2 * ("CRCRMD" if norm == "none" else "CBRCBRMD")
    images = torch.randn(4, 3, 20, 20)
    answers = []
    for features in (net.features, nn.Sequential(*textbook)):
        net.zero_grad()
        logits = net.classifier(features(images))
        logits.square().sum().backward()
        answers.append([logits.detach(), *(parameter.grad.clone() for parameter in net.parameters())])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*answers, strict=True))


def test_simple_cnn_can_be_the_three_recipes():
    """Layer by layer what the Keras programs build, with ReLU behind the pooling; 1,250,858 is Keras' own count for its CIFAR-10 example."""
    keras = simple_cnn(image_size=150, widths=[32, 64, 128], dense=512, num_classes=2)
    flat = 128 * 17**2
    assert sum(p.numel() for p in keras.parameters()) == (
        9 * 3 * 32 + 32 + 9 * 32 * 64 + 64 + 9 * 64 * 128 + 128 + flat * 512 + 512 + 2 * 512 + 2
    )
    mnist = simple_cnn(channels=1, image_size=28)
    assert sum(p.numel() for p in mnist.parameters()) == 225_034  # conv 320 + 18496, dense 204928 + 1290
    cifar = simple_cnn(padding=["same", "valid"], dense=512, stage_dropout=0.25, dense_dropout=0.5)
    assert sum(p.numel() for p in cifar.parameters()) == 1_250_858
    kinds = [type(m).__name__ for m in cifar.modules() if not list(m.children())]
    stage = ["Conv2d", "ReLU", "Conv2d", "MaxPool2d", "ReLU", "Dropout"]
    assert kinds == stage * 2 + ["Flatten", "Linear", "ReLU", "Dropout", "Linear"]
    assert [m.p for m in cifar.modules() if isinstance(m, nn.Dropout)] == [0.25, 0.25, 0.5]


def test_lenet_has_the_papers_layers():
    net = LeNet(num_classes=10, channels=1, image_size=28, activation="tanh", pool="average")
    assert [p.numel() for p in net.parameters() if p.ndim > 1] == [6 * 25, 6 * 16 * 25, 400 * 120, 120 * 84, 84 * 10]


@pytest.mark.parametrize(
    "name",
    slow_but(
        "resnet50",
        "vgg16_bn",
        among=sorted(name for name in set(option_names("model")) & set(torchvision_names()) if re.search(r"\d", name)),
    ),
)
def test_a_name_with_a_depth_is_torchvisions_network_of_that_name(name):
    node = load_config("train", [f"model={name}", "data.image_size=224", "data.channels=3"]).model
    with weightless():
        ours, theirs = instantiate(node, num_classes=1000), torchvision.models.get_model(name)
    shapes = [{key: value.shape for key, value in net.state_dict().items() if "aux" not in key} for net in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("depth", slow_but(20, among=CIFAR_DEPTHS))
def test_a_name_with_a_depth_of_the_cifar_family(depth):
    node = load_config("train", [f"model=resnet{depth}", "data.image_size=224"]).model
    assert node == load_config("train", ["model=resnet", f"model.depth={depth}", "data.image_size=224"]).model


def test_a_list_of_ones_own_is_replaced_and_another_file_is_not(tmp_path, capsys):
    for name in ("m.json", "m.csv"):
        words = ["models", "filter=lenet", f"out={tmp_path / name}"]
        assert cli.main([*words, "image_size=64"]) == 0
        assert cli.main(words) == 0
        written = (tmp_path / name).read_bytes()
        (tmp_path / name).write_text("mine")
        assert cli.main(words) == 2
        assert (tmp_path / name).read_text() == "mine"
        assert cli.main([*words, "overwrite=true"]) == 0
        assert (tmp_path / name).read_bytes() == written


@pytest.mark.slow
def test_listing_counts_what_is_built(tmp_path, capsys):
    assert cli.main(["models", "filter=resnet[1-3][0-9]", f"out={tmp_path / 'm.json'}"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "multiply-add counted as two" in out
    rows = {row["name"]: row for row in json.loads((tmp_path / "m.json").read_text())}
    assert rows.keys() == {"resnet18", "resnet20", "resnet32", "resnet34"}
    assert rows["resnet20"]["parameters"] == 269_722
    assert (rows["resnet20"]["image_size"], rows["resnet20"]["num_classes"]) == (32, 10)
    assert rows["resnet18"]["parameters"] == 11_689_512
    assert rows["resnet18"]["select"] == "model=resnet18"
    assert cli.main(["models", "source=torchvision", "filter=resnet50", f"out={tmp_path / 'm.csv'}", "num_classes=10"]) == 0
    with (tmp_path / "m.csv").open() as file:
        assert next(csv.DictReader(file))["parameters"] == str(25_557_032 - 990 * 2049)


@pytest.mark.parametrize(
    ("sizes", "most", "measured"),
    slow_but(
        ("auto", 1, False),
        ("true", 1, True),
        ("false", 2, False),
        among=[("auto", 1, False), ("auto", 2, True), ("true", 1, True), ("false", 2, False)],
    ),
)
def test_a_long_list_has_no_sizes_unless_told(sizes, most, measured, capsys, monkeypatch, tmp_path):
    """1,371 networks of timm would take 12 minutes."""
    monkeypatch.setattr(models_command, "MOST_MEASURED", most)
    words = ["models", "filter=resnet[24][04]", "image_size=48", f"sizes={sizes}", f"out={tmp_path / 'm.json'}"]
    assert cli.main(words) == 0
    rows = json.loads((tmp_path / "m.json").read_text())
    assert {row["name"]: row["parameters"] for row in rows} == {
        "resnet20": 269_722 if measured else None,
        "resnet44": 658_586 if measured else None,
    }
    assert {row["image_size"] for row in rows} == {48}
    assert ("sizes=true" in capsys.readouterr().out) == (not measured)


def test_listing_notes_in_the_row_why_a_network_was_not_measured():
    query = CatalogQuery(source="torchvision", filter="alexnet", image_size=28)
    (row,) = map(measure_network, candidates(query))
    assert row.flops is None
    assert "Set data.image_size=64" in row.note


def test_a_listing_of_nothing_is_refused(capsys):
    assert cli.main(["models", "filter=nothing"]) == 2
    assert_refused(capsys.readouterr().err, "filter=nothing", "source=all", "filter=*resnet*")
