"""Which tensors and class rows are copied, how layers are grouped, and that a frozen backbone does not change."""

import copy
import pickle
import urllib.error
import zipfile
from pathlib import Path

import pytest
import torch
import torchvision
from error_parts import raises_error
from hypothesis import given, settings
from hypothesis import strategies as st
from marks import slow_but
from torch import nn

from imgrec.errors import CheckpointError, ConfigError
from imgrec.inference.checkpoint import FORMAT_VERSION
from imgrec.models.densenet import densenet
from imgrec.models.googlenet import googlenet
from imgrec.models.layers import head_names, layers
from imgrec.models.pretrained import PretrainedWeights, _common_rows, _fold_input_transform, transfer_weights
from imgrec.models.resnet import resnet
from imgrec.models.simple_cnn import SimpleCNN
from imgrec.models.timm import timm_net
from imgrec.models.torchvision import torchvision_net
from imgrec.models.vgg import vgg
from imgrec.training.callbacks.freeze import freeze, unfreeze
from imgrec.training.transfer import pretrained_weights

ANIMALS = ("tench", "cat", "goldfish", "unicorn")  # two of ImageNet's categories, its first two


def build_resnet(num_classes=4, channels=3, depth=18, stem="imagenet"):
    return resnet(num_classes=num_classes, channels=channels, depth=depth, stem=stem, zero_init_residual=False)


def node(depth=18, stem="imagenet", family="resnet.resnet", **more):
    return {"_target_": f"imgrec.models.{family}", "depth": depth, "stem": stem, **more}


def simple(num_classes, image_size=8):
    torch.manual_seed(num_classes)
    return SimpleCNN(
        num_classes=num_classes,
        channels=1,
        image_size=image_size,
        widths=[4],
        padding=["same"],
        kernel=3,
        norm="batch",
        dense=5,
        stage_dropout=0.0,
        dense_dropout=0.0,
    )


def from_torchvision(name, num_classes, image_size):
    return torchvision_net(name=name, num_classes=num_classes, channels=3, image_size=image_size)


def transfer(net, weights, *, model, classes):
    return transfer_weights(net, pretrained_weights(weights, model), classes)


SIMPLE = {"_target_": "imgrec.models.simple_cnn.SimpleCNN", "image_size": 8, "dense": 5}


def save_run(folder, net, classes, model):
    """A checkpoint as a run leaves it."""
    state = {f"net.{key}": value for key, value in net.state_dict().items()} | {"loss.weight": torch.ones(3)}
    metadata = {
        "version": FORMAT_VERSION,
        "classes": list(classes),
        "config": {"model": model},
        "preprocessing": {},
        "data": None,
        "versions": {},
    }
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": state, "imgrec": metadata}, folder / "checkpoints" / "best.ckpt")
    return folder


@pytest.fixture
def published(monkeypatch):
    """torchvision's download replaced at its lowest level: random weights of seed 1 under the right names."""

    def from_seed(self, *args, **kwargs):
        name = type(self).__name__.removesuffix("_Weights").lower()
        settings = {"init_weights": False} if name == "googlenet" else {}  # torchvision's initial values take seconds
        torch.manual_seed(1)
        net = torchvision.models.get_model(name, **settings)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
        return net.state_dict()

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", from_seed)
    return from_seed


def test_torchvisions_weights_by_name(published):
    net = build_resnet()
    fresh = copy.deepcopy(net.fc)
    sentence = transfer(net, "IMAGENET1K_V1", model=node(), classes=ANIMALS)
    assert sentence.split("; ") == [
        "122 of 122 tensors from torchvision's resnet18 IMAGENET1K_V1",
        "head: 2 of 4 class rows copied (tench, goldfish), 2 new",
    ]
    theirs = published(torchvision.models.ResNet18_Weights.IMAGENET1K_V1)
    for key, tensor in net.state_dict().items():
        if not key.startswith("fc"):
            torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=0, msg=key)
    for name in ("weight", "bias"):
        mine = getattr(net.fc, name)
        torch.testing.assert_close(mine[[0, 2]], theirs[f"fc.{name}"][:2], rtol=0, atol=0)
        torch.testing.assert_close(mine[[1, 3]], getattr(fresh, name)[[1, 3]], rtol=0, atol=0)


@pytest.mark.slow
def test_all_of_imagenets_classes_give_torchvisions_outputs(published):
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    theirs = torchvision.models.resnet18(weights=weights).eval()
    net = build_resnet(1000).eval()
    transfer(net, "DEFAULT", model=node(), classes=weights.meta["categories"])
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(net(images), theirs(images), rtol=0, atol=0)


def test_a_network_without_a_convolution_takes_weights():
    old, new = (nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, outputs)) for outputs in (3, 2))
    said = transfer_weights(new, PretrainedWeights("runs/old", old.state_dict(), ("ant", "bee", "cat"), ""), ("cat", "dog"))
    assert said.startswith("4 of 4 tensors from runs/old; head: 1 of 2 class rows copied (cat)")
    assert torch.equal(new[1].weight, old[1].weight)
    assert torch.equal(new[3].weight[0], old[3].weight[2])


def test_a_class_name_that_stands_twice_in_the_pretrained_list_copies_no_row():
    assert _common_rows(["crane", "crane", "cat"], ["cat", "crane"]) == {0: 2}
    assert _common_rows(["crane", "crane", "cat"], ["crane", "crane", "cat"]) == {0: 0, 1: 1, 2: 2}


@pytest.mark.slow
def test_one_channel_gets_the_sum_of_the_colours(published):
    net, rgb = build_resnet(channels=1).eval(), build_resnet().eval()
    for each in (net, rgb):
        transfer(each, "DEFAULT", model=node(), classes=ANIMALS)
    rgb.fc.load_state_dict(net.fc.state_dict())
    assert torch.equal(net.conv1.weight, rgb.conv1.weight.sum(1, keepdim=True))
    grey = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(net.double()(grey.double()), rgb.double()(grey.double().expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(
    ("name", "inner"), [pytest.param("inception_v3", slice(None), marks=pytest.mark.slow), ("googlenet", slice(2, -2))]
)
def test_the_input_transform_moves_into_the_first_layer(name, inner):
    torch.manual_seed(0)
    nets = [torchvision.models.get_model(name, init_weights=False, transform_input=mapped).eval() for mapped in (True, False)]
    first = [net.Conv2d_1a_3x3 if name == "inception_v3" else net.conv1 for net in nets]
    first[0].bn.running_mean.uniform_(-0.1, 0.1)
    state = nets[0].state_dict()
    _fold_input_transform(nets[0], state)
    nets[1].load_state_dict(state)
    images = torch.randn(1, 3, 64, 64)
    theirs, ours = first[0](nets[0]._transform_input(images)), first[1](images)
    torch.testing.assert_close(ours[..., inner, inner], theirs[..., inner, inner], rtol=1e-4, atol=1e-5)


def test_auxiliary_classifiers_are_left_behind(published):
    net = googlenet(num_classes=4, channels=1, stem="imagenet", dropout=0.0)
    model = {"_target_": "imgrec.models.googlenet.googlenet", "stem": "imagenet"}
    assert "2 of 4 class rows copied (tench, goldfish)" in transfer(net, "DEFAULT", model=model, classes=ANIMALS)


def test_a_downloaded_file_is_found_where_torch_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    state = torchvision.models.squeezenet1_1().state_dict()
    torch.save(state, tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    model = {"_target_": "imgrec.models.torchvision.torchvision_net", "name": "squeezenet1_1", "image_size": 64}
    net = from_torchvision("squeezenet1_1", 4, 64)
    transfer(net, "DEFAULT", model=model, classes=ANIMALS)
    torch.testing.assert_close(net.classifier[1].weight[[0, 2]], state["classifier.1.weight"][:2], rtol=0, atol=0)
    torch.testing.assert_close(net.features[0].weight, state["features.0.weight"], rtol=0, atol=0)


FAULTS = [urllib.error.URLError("no network"), RuntimeError("invalid hash value"), zipfile.BadZipFile("bad\ntwo")]


@pytest.mark.parametrize("fault", slow_but(FAULTS[0], among=FAULTS))
def test_weights_that_cannot_be_fetched_say_where_the_file_goes(fault, tmp_path, monkeypatch):
    def fails(self, *args, **kwargs):
        raise fault

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", fails)
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    with raises_error(CheckpointError, "weights=DEFAULT", file), torch.device("meta"):
        transfer(build_resnet(), "DEFAULT", model=node(), classes=ANIMALS)


@pytest.mark.parametrize(
    ("weights", "model", "parts"),
    [
        ("IMAGENET1K_V9", node(), ("resnet18", "IMAGENET1K_V1, DEFAULT", "weights=DEFAULT")),
        ("DEFAULT", node(20, "small"), ("no weights for this resnet",)),
        ("runs/none", {"_target_": "imgrec.models.timm.timm_net", "name": "x"}, ("timm", "DEFAULT")),
        ("IMAGENET1K_FEATURES", node(16, family="vgg.vgg", batch_norm=False), ("vgg16", "IMAGENET1K_V1, DEFAULT")),
    ],
)
def test_unknown_weights_name_those_there_are(weights, model, parts):
    with raises_error(CheckpointError, f"weights={weights}", *parts), torch.device("meta"):
        transfer(build_resnet(), weights, model=model, classes=ANIMALS)


def test_another_stem_names_the_key_to_set(published):
    shapes = ("conv1.weight", "[64, 3, 7, 7]", "[64, 3, 3, 3]", "1 of 122 tensors")
    with raises_error(CheckpointError, "weights", "resnet18 IMAGENET1K_V1", *shapes, "model.stem=imagenet"):
        transfer(build_resnet(stem="small"), "DEFAULT", model=node(stem="small"), classes=ANIMALS)


NAMES = st.lists(st.sampled_from([f"class {i}" for i in range(12)]), min_size=2, max_size=8, unique=True)


@given(old=NAMES, new=NAMES)
@settings(max_examples=25, deadline=None)
def test_rows_follow_the_names_of_a_run(tmp_path_factory, old, new):
    source, net = simple(len(old)), simple(len(new))
    fresh = copy.deepcopy(net)
    folder = save_run(tmp_path_factory.mktemp("runs") / "1", source, old, SIMPLE)
    sentence = transfer(net, str(folder), model=SIMPLE, classes=new)
    common = [name for name in new if name in old]
    assert f"head: {len(common)} of {len(new)} class rows copied" in sentence
    for i, name in enumerate(new):
        head, row = (source, old.index(name)) if name in old else (fresh, i)
        assert torch.equal(net.classifier[-1].weight[i], head.classifier[-1].weight[row])
        assert torch.equal(net.classifier[-1].bias[i], head.classifier[-1].bias[row])
    for key in (key for key in net.state_dict() if not key.startswith("classifier.4")):
        assert torch.equal(net.state_dict()[key], source.state_dict()[key])


def test_a_run_of_another_network_says_what_to_type(tmp_path):
    folder = save_run(tmp_path / "1", simple(3, image_size=16), "abc", SIMPLE | {"image_size": 16})
    with pytest.raises(CheckpointError, match=r"tensors differ\). Set data.image_size=16.$"):
        transfer(simple(3), str(folder), model=SIMPLE, classes=tuple("abc"))
    with pytest.raises(
        CheckpointError, match=r"conv1.weight is missing .* Set model=simple_cnn data.image_size=16 model.dense=5"
    ):
        transfer(build_resnet(3), str(folder), model=node(), classes=tuple("abc"))


def test_timms_weights(monkeypatch):
    timm = pytest.importorskip("timm")
    create = timm.create_model

    def pretrained(name, *, pretrained=False, **settings):
        if pretrained:
            torch.manual_seed(1)
        return create(name, **settings)

    monkeypatch.setattr(timm, "create_model", pretrained)
    net = timm_net(name="test_vit", num_classes=4, channels=1, image_size=32)
    model = {"_target_": "imgrec.models.timm.timm_net", "name": "test_vit", "image_size": 32, "channels": 1}
    assert "2 of 4 class rows copied (tench, goldfish)" in transfer(net, "DEFAULT", model=model, classes=ANIMALS)
    torch.manual_seed(1)
    theirs = create("test_vit", in_chans=1, img_size=32)
    assert torch.equal(net.patch_embed.proj.weight, theirs.patch_embed.proj.weight)
    assert torch.equal(net.head.weight[[0, 2]], theirs.head.weight[:2])

    def offline(name, **settings):
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(CheckpointError, match=r"test_vit .*\(We couldn't connect\)"):
        transfer(net, "DEFAULT", model=model, classes=ANIMALS)


def densenet121(num_classes):
    return densenet(num_classes=num_classes, channels=3, depth=121, stem="small", dropout=0.0, memory_efficient=False)


def from_timm():
    return timm_net(name="vit_tiny_patch16_224", num_classes=10, channels=3, image_size=32)


def from_timm_deit():
    return timm_net(name="deit_tiny_distilled_patch16_224", num_classes=10, channels=3, image_size=224)


def from_timm_levit():
    return timm_net(name="levit_128s", num_classes=10, channels=3, image_size=224)


@pytest.mark.parametrize("build", slow_but(from_timm_deit, among=[from_timm_deit, from_timm_levit]))
def test_of_two_heads_the_rows_of_both_are_copied(build):
    """Distilled networks average two heads: the logits of classes that both networks have are the same."""
    pytest.importorskip("timm")
    theirs, ours = build().eval(), build().eval()
    classes = [f"c{i}" for i in range(10)]
    for head in head_names(theirs, 10):
        nn.init.normal_(theirs.get_submodule(head).weight)
    weights = PretrainedWeights("theirs", theirs.state_dict(), tuple(classes), "")
    few = timm_net(name=theirs.pretrained_cfg["architecture"], num_classes=4, channels=3, image_size=224).eval()
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = theirs(images)
    assert "10 of 10 class rows" in transfer_weights(ours, weights, classes[::-1])
    torch.testing.assert_close(ours(images), expected.flip(1))
    assert "2 of 4 class rows copied (c7, c2)" in transfer_weights(few, weights, ["x", "c7", "y", "c2"])
    torch.testing.assert_close(few(images)[:, [1, 3]], expected[:, [7, 2]])


FAMILIES = {  # network, its head, number of groups
    "resnet18": (lambda: build_resnet(10), "fc", 1 + 8 + 1),
    "resnet20": (lambda: build_resnet(10, depth=20, stem="small"), "fc", 1 + 9 + 1),
    "vgg11": (lambda: vgg(num_classes=10, channels=3, depth=11, batch_norm=True, head="small", dropout=0), "classifier.3", 8 + 2),
    "densenet": (lambda: densenet121(10), "classifier", 1 + 7 + 1),
    "simple_cnn": (lambda: simple(10), "classifier.4", 3),
    "vit": (lambda: from_torchvision("vit_b_16", 10, 32), "heads.head", 1 + 12 + 1),
    "convnext": (lambda: from_torchvision("convnext_tiny", 10, 32), "classifier.2", 1 + 18 + 3 + 1),
    "squeezenet": (lambda: from_torchvision("squeezenet1_1", 10, 64), "classifier.1", 1 + 8 + 1),
    "timm vit": (from_timm, "head", 1 + 12 + 1),
    "timm deit": (from_timm_deit, "head head_dist", 1 + 12 + 1),
    "timm levit": (from_timm_levit, "head.linear head_dist.linear", 9),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_a_partition_from_input_to_head(family):
    if family.startswith("timm"):
        pytest.importorskip("timm")
    build, head, count = FAMILIES[family]
    with torch.device("meta"):
        net = build()
    groups = layers(net, 10)
    names = [name for group in groups for name in group]
    assert len(names) == len(set(names))
    assert set(names) == {name for name, _ in net.named_parameters()}
    assert len(groups) == count
    assert head_names(net, 10) == head.split()
    assert groups[-1] == [name for name, _ in net.named_parameters() if name.rpartition(".")[0] in head.split()]
    first = next(name for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    assert f"{first}.weight" in groups[0]


def test_layers_of_a_transformer_follow_its_blocks():
    with torch.device("meta"):
        net = from_torchvision("vit_b_16", 10, 32)
    groups = layers(net, 10)
    assert {"class_token", "conv_proj.weight", "encoder.pos_embedding"} <= set(groups[0])
    assert "encoder.ln.weight" in groups[-2]
    for i, group in enumerate(groups[1:-1]):
        assert all(f"encoder_layer_{i}." in name or name.startswith("encoder.ln") for name in group)


def test_a_network_without_a_head_is_refused():
    with pytest.raises(ConfigError, match=r"ResNet .* 11 outputs.* Set weights=null"):
        head_names(build_resnet(10), 11)


def train_step(net):
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    net(torch.rand(4, 3, 16, 16)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_frozen_backbone_stays_bit_for_bit():
    torch.manual_seed(0)
    net = build_resnet(10, depth=20, stem="small").train()
    before = copy.deepcopy(net.state_dict())
    for _ in range(2):
        freeze(net, 10)
        train_step(net)
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[key]) == (not key.startswith("fc.")), key


def test_unfrozen_it_trains_as_if_never_frozen():
    torch.manual_seed(0)
    net = build_resnet(10, depth=20, stem="small").train()
    net.layer1[0].conv1.weight.requires_grad_(False)
    untouched = copy.deepcopy(net)
    freeze(net, 10)
    freeze(net, 10)
    unfreeze(net)
    for each in (net, untouched):
        torch.manual_seed(1)
        train_step(each)
    torch.testing.assert_close(net.state_dict(), untouched.state_dict(), rtol=0, atol=0)
    assert [m.training for m in net.modules()] == [m.training for m in untouched.modules()]
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in untouched.parameters()]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_a_frozen_network_can_be_copied(copied):
    net = build_resnet(10, depth=20, stem="small").train()
    freeze(net, 10)
    twin = copied(net)
    unfreeze(twin)
    assert twin.bn1.training
    assert not net.bn1.training
    assert twin.conv1.weight.requires_grad
    assert not net.conv1.weight.requires_grad


def test_paths_come_before_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_run(Path("DEFAULT"), simple(3), "abc", SIMPLE)
    sentence = transfer(simple(3), "DEFAULT", model=SIMPLE, classes=tuple("abc"))
    assert sentence.endswith("from DEFAULT; head: 3 of 3 class rows copied (a, b, c), 0 new")
