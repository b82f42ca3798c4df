"""Maps against closed forms and captum, their tests against scipy and planted marks, neighbours against scikit-learn."""

import csv
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from error_parts import assert_refused, raises_error
from hypothesis import given
from hypothesis import strategies as st
from image_files import picture
from marks import fewer
from PIL import Image
from scipy.stats import rankdata, spearmanr
from sklearn.neighbors import NearestNeighbors
from small_run import SMALL
from test_data_folder import folder, make, whole
from torch import nn
from untrained_run import save_untrained_run
from watermark import MARKS, learn_marks, pointed_at

from imgrec import cli
from imgrec.analysis.explain import as_map, check_layer, find_layer, grad_cam, gradient_attributions, integrated_gradients
from imgrec.analysis.map_borders import AREAS_OF_REGIONS, MUCH, REGIONS, find_concentrations, region_shares
from imgrec.analysis.map_tests import (
    MOST_OVERLAP,
    HidingTest,
    MapVerdict,
    hide,
    hiding_test,
    marked_area,
    mean_ranks,
    random_areas,
    rank_correlations,
    with_random_weights,
)
from imgrec.analysis.neighbours import find_nearest
from imgrec.errors import ConfigError, DataError
from imgrec.inference.contact_sheet import MARGIN
from imgrec.inference.explanations import METHODS, Explainer, explain_images
from imgrec.inference.predictor import load
from imgrec.inference.training_neighbours import training_neighbours
from imgrec.models.catalog import CatalogQuery, candidates
from imgrec.models.layers import head_names
from imgrec.train import fit


def pooled() -> nn.Sequential:
    """Convolution, ReLU, global mean, linear."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 5, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )
    return nn.Sequential(*layers).eval()


def pixels(count=4, side=16, seed=1):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


TARGETS = torch.tensor([0, 1, 2, 0])


def test_grad_cam_behind_a_global_mean_is_the_class_activation_map():
    """Zhou et al. 2016 (arXiv 1512.04150): the layer's maps weighted by the head's weights, here over the number of pixels."""
    net = pooled()
    assert find_layer(net, pixels()) == "1"
    features = net[:2](pixels()).detach()
    expected = torch.einsum("bchw,bc->bhw", features, net[4].weight.detach()[TARGETS]).relu() / 64
    torch.testing.assert_close(grad_cam(net, "1", pixels(), TARGETS), expected)


@pytest.mark.parametrize(("side", "layer"), [(40, "2"), (32, "1"), (8, "0")])
def test_the_layer_is_the_last_map_with_enough_places(side, layer):
    torch.manual_seed(0)
    halving = (nn.Conv2d(3, 4, 2, stride=2), nn.Conv2d(4, 4, 2, stride=2), nn.Conv2d(4, 4, 2, stride=2))
    net = nn.Sequential(*halving, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    assert find_layer(net, pixels(2, side)) == layer


def test_integrated_gradients_are_exact_where_the_network_is_linear_and_complete_elsewhere():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3)).eval()
    found = integrated_gradients(linear, pixels(), TARGETS, steps=2)
    torch.testing.assert_close(found.flatten(1), (pixels().flatten(1) * linear[1].weight[TARGETS]).detach())
    net = pooled()
    whole = integrated_gradients(net, pixels(), TARGETS, steps=64).sum((1, 2, 3))
    with torch.no_grad():
        rise = (net(pixels()) - net(torch.zeros(1, 3, 16, 16)))[range(4), TARGETS]
    torch.testing.assert_close(whole, rise, rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_maps_are_those_of_captum():
    captum = pytest.importorskip("captum.attr")
    net = pooled()
    own = captum.LayerGradCam(net, net[1]).attribute(pixels(), target=TARGETS, relu_attributions=True)[:, 0]
    torch.testing.assert_close(grad_cam(net, "1", pixels(), TARGETS), own.detach())
    own = captum.IntegratedGradients(net).attribute(pixels(), target=TARGETS, n_steps=8, method="riemann_middle")
    torch.testing.assert_close(integrated_gradients(net, pixels(), TARGETS, steps=8), own.float())
    sure = nn.Sequential(net, nn.Softmax(1))
    other = captum.IntegratedGradients(sure).attribute(pixels(), target=TARGETS, n_steps=8, method="riemann_middle")
    both = [part / part.sum(1).abs().sum((1, 2))[:, None, None, None] for part in (own, other)]
    torch.testing.assert_close(gradient_attributions(net, pixels(), TARGETS), (both[0] + both[1]).float())


@pytest.mark.parametrize(("bias", "parts"), [(0.0, 2), (1e4, 1)], ids=["undecided", "sure of everything"])
def test_the_probability_adds_what_it_has_to_the_logit(bias, parts):
    """Of two classes with logits z and 0, z linear, both have gradients along the weights of z."""
    linear = nn.Linear(3 * 16 * 16, 2)
    with torch.no_grad():
        linear.weight[1], linear.bias[:] = 0.0, torch.tensor([bias, 0.0])
    found = gradient_attributions(nn.Sequential(nn.Flatten(), linear), pixels(), torch.zeros(4, dtype=torch.int64))
    expected = (pixels() * linear.weight[0].view(3, 16, 16)).detach()
    expected /= expected.sum(1).abs().sum((1, 2))[:, None, None, None]
    torch.testing.assert_close(found, parts * expected)


def test_tokens_of_patches_and_channels_last_are_maps():
    tokens = torch.arange(2 * 10 * 3.0).view(2, 10, 3)  # one of a class, nine patches
    assert torch.equal(as_map(tokens), tokens[:, 1:].transpose(1, 2).reshape(2, 3, 3, 3))
    last = torch.rand(2, 4, 4, 7)
    assert torch.equal(as_map(last), last.movedim(-1, 1))
    assert as_map(torch.rand(2, 7, 4, 4)).shape == (2, 7, 4, 4)
    assert as_map(torch.rand(2, 7, 4, 5)) is None
    assert as_map(torch.rand(2, 7)) is None


FAMILIES = {
    "torchvision:vit_b_16": ("encoder.layers.encoder_layer_11.ln_1", 14),
    "torchvision:swin_t": ("permute", 7),
    "torchvision:convnext_tiny": ("features", 7),
    "torchvision:efficientnet_b0": ("features", 7),
    "torchvision:maxvit_t": ("blocks.3", 7),
    "timm:deit_tiny_patch16_224": ("blocks.11.attn.qkv", 14),
    "timm:vit_tiny_patch16_224": ("blocks.11.attn.qkv", 14),
    "timm:swin_tiny_patch4_window7_224": ("norm", 7),
    "timm:mixer_s32_224": ("norm", 7),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layer", "side"), [(name, *found) for name, found in FAMILIES.items()])
def test_networks_of_the_libraries_have_a_map(name, layer, side):
    source, name = name.split(":")
    if source == "timm":
        pytest.importorskip("timm")
    torch.manual_seed(0)
    net = next(candidates(CatalogQuery(source=source, filter=name, num_classes=3))).build().eval()
    for head in head_names(net, 3):  # of some it is 0 before the training
        nn.init.normal_(net.get_submodule(head).weight)
    images = pixels(2, 224)
    assert find_layer(net, images) == layer
    assert grad_cam(net, layer, images, TARGETS[:2]).shape == (2, side, side)


def test_a_layer_that_gives_no_map_is_refused():
    net = pooled()
    for layer in ("4", "0.weight"):
        with raises_error(ConfigError, f"layer={layer}", "Leave it out", "set layer="):
            check_layer(net, layer, pixels())
    check_layer(net, "0", pixels())
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    with raises_error(ConfigError, "method=gradcam", "Set method=gradients"):
        find_layer(flat, pixels())


@given(seed=st.integers(0, 1000), side=st.integers(6, 12), share=st.sampled_from([0.1, 0.3]))
@fewer(10)
def test_random_areas_have_the_size_of_the_marked_one_and_lie_elsewhere(seed, side, share):
    draw = torch.Generator().manual_seed(seed)
    area = marked_area(torch.rand(side, side, generator=draw), share)
    assert area.sum() == round(share * side * side)
    areas = random_areas(area, 100, draw)
    assert (areas.sum((1, 2)) == area.sum()).all()
    assert (areas & area).sum((1, 2)).max() <= MOST_OVERLAP * area.sum() + 1


def test_what_is_marked_leaves_out_zeros_and_what_is_hidden_has_the_mean_colour():
    values = torch.zeros(4, 4)
    values[1, 2] = 1
    area = marked_area(values, 0.5)
    assert area.nonzero().tolist() == [[1, 2]]
    image = pixels(1, 4)[0]
    hidden = hide(image, area[None])[0]
    torch.testing.assert_close(hidden[:, 1, 2], image.mean((1, 2)))
    assert torch.equal(hidden[:, ~area], image[:, ~area])


def test_p_is_the_share_of_areas_that_are_as_bad():
    area = torch.zeros(8, 8, dtype=torch.bool)
    area[:2, :2] = True
    image = torch.ones(1, 8, 8)
    image[:, :2, :2] = 9.0
    draw = torch.Generator().manual_seed(0)

    def only_the_mark(images):
        return images[:, 0, :2, :2].sum((1, 2)) - 34

    found = hiding_test(only_the_mark, image, area, count=100, generator=draw)
    assert found.p == pytest.approx(1 / 101)
    before, after = 1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(34 - 4 * 3.0 / 1.5))  # the mean of 4 nines and 60 ones is 1.5
    assert found.drop == pytest.approx(before - 1 / (1 + np.exp(34 - 6)), abs=1e-6)
    assert after < before
    nothing = hiding_test(lambda images: torch.zeros(len(images)), image, area, count=100, generator=draw)
    assert nothing == HidingTest(1.0, 0.0, 0.0)
    assert hiding_test(only_the_mark, image, torch.zeros_like(area), count=100, generator=draw) is None


@pytest.mark.parametrize(
    ("hiding", "similarity", "supported"),
    [
        (HidingTest(0.0099, 0.5, 0.1), 0.1, True),
        (HidingTest(0.0099, 0.5, 0.1), 0.51, False),
        (HidingTest(0.01, 0.5, 0.1), 0.1, False),
        (HidingTest(0.0099, -0.1, -0.2), 0.1, False),
        (None, 0.0, False),
    ],
)
def test_a_map_is_supported_by_both_tests(hiding, similarity, supported):
    verdict = MapVerdict(hiding, similarity)
    assert verdict.supported == supported == (verdict.sentence == "supported")
    assert verdict.sentence.startswith("supported" if supported else "not supported: ")


def test_similarity_is_spearmans_correlation():
    maps, others = torch.rand(3, 6, 6).relu(), (torch.rand(3, 6, 6) - 0.5).relu()  # with ties
    maps[2] = 1.0
    expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(maps[:2], others[:2], strict=True)]
    np.testing.assert_allclose(rank_correlations(maps, others), [*expected, 0.0])


@given(st.lists(st.lists(st.integers(0, 5), min_size=6, max_size=6), min_size=1, max_size=4))
def test_ranks_are_those_of_scipy(rows):
    values = np.array(rows, dtype=np.float64)
    np.testing.assert_array_equal(mean_ranks(values), rankdata(values, axis=1))


def test_random_weights_are_in_the_order_of_torchs_permutation():
    net = nn.Linear(300, 200)
    random = with_random_weights(net, torch.rand(2, 300, 1, 1).expand(2, 300, 4, 300), 3)
    generator = torch.Generator().manual_seed(3)
    for own, mixed in zip(net.parameters(), random.parameters(), strict=True):
        assert torch.equal(mixed.flatten(), own.flatten()[torch.randperm(own.numel(), generator=generator)])


def test_random_weights_are_the_same_values_elsewhere_and_the_network_stays():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).eval()
    before = {name: values.clone() for name, values in net.state_dict().items()}
    random = with_random_weights(net, pixels(2), 0)
    assert all(torch.equal(values, before[name]) for name, values in net.state_dict().items())
    assert not random[1].training
    assert not torch.equal(random[0].weight, net[0].weight)
    assert torch.equal(random[0].weight.flatten().sort().values, net[0].weight.flatten().sort().values)
    with torch.no_grad():  # its batch norm knows what comes
        assert 0.1 < random[:2](pixels(2)).std() / net[1].weight.abs().mean() < 3
        moved = torch.cat([pixels(2), *(pixels(2).roll((move, 2 * move), (2, 3)) for move in (3, 7, 11))])
        torch.testing.assert_close(random[1].running_mean, random[0](moved).mean((0, 2, 3)))
    assert random[1].momentum == net[1].momentum


def test_a_network_whose_mixed_weights_let_nothing_through_gets_random_signs():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 100, 50), nn.ReLU(), nn.Linear(50, 2)).eval()
    with torch.no_grad():
        net[3].weight.copy_(-net[3].weight.abs())  # all negative, in any order
    images = torch.rand(2, 3, 12, 12)
    random = with_random_weights(net, images, 0)
    assert torch.equal(random[3].weight.abs().flatten().sort().values, net[3].weight.abs().flatten().sort().values)
    assert integrated_gradients(random, images, torch.tensor([0, 1])).flatten(1).abs().sum(1).min() > 0
    assert torch.equal(with_random_weights(net, images, 0)[3].weight, random[3].weight)


def test_maps_in_a_corner_of_one_class_are_found():
    even = torch.ones(20, 16, 16)
    np.testing.assert_allclose(region_shares(even), np.tile(AREAS_OF_REGIONS, (20, 1)))
    np.testing.assert_allclose(region_shares(torch.zeros(1, 16, 16))[0], AREAS_OF_REGIONS)
    corner = 0.01 * even.clone()
    corner[:, -3:, -3:] = 1
    labels = [0] * 20 + [1] * 20
    found = find_concentrations(region_shares(torch.cat([even, corner])), labels)
    assert [(one.label, one.region, one.images) for one in found] == [(1, "lower right corner", 20)]
    assert found[0].p == pytest.approx(2 * len(REGIONS) * 0.5**20)
    assert found[0].share == pytest.approx((9 + 7 * 0.01) / (9 + 247 * 0.01))
    assert not find_concentrations(region_shares(corner[:5]), [0] * 5)  # too few to tell


@pytest.mark.parametrize(("part", "regions"), [(MUCH - 0.01, []), (MUCH + 0.01, ["upper right corner"])])
def test_maps_have_to_lie_much_in_a_region(part, regions):
    shares = np.tile(AREAS_OF_REGIONS, (20, 1))
    shares[:, 2] += part * (1 - AREAS_OF_REGIONS[2])
    assert [one.region for one in find_concentrations(shares, [0] * 20)] == regions


@pytest.mark.parametrize("block", [7, 100])
def test_neighbours_are_those_of_scikit_learn(block):
    draw = np.random.default_rng(0)
    queries, vectors = (draw.normal(size=(count, 12)).astype(np.float32) for count in (5, 60))
    vectors[40] = vectors[3]
    found = find_nearest(torch.from_numpy(queries), torch.from_numpy(vectors).split(block), 4)
    distances, rows = NearestNeighbors(n_neighbors=4, metric="cosine").fit(vectors).kneighbors(queries)
    np.testing.assert_allclose(found.distances, distances, atol=1e-6)
    assert found.rows.tolist() == rows.tolist()
    assert find_nearest(torch.ones(2, 3), [torch.eye(3)], 9).rows.shape == (2, 3)


def test_a_training_image_that_goes_before_it_is_shown_is_one_line(tmp_path):
    """Another process may remove it, or write it anew, after its features were computed."""
    photos = make(tmp_path / "photos", {"cat": 6, "dog": 6})
    train = folder(photos, on_bad_image="skip", on_bad_image_eval="skip").split("train")
    gone = photos / os.fsdecode(train.names[2])

    class Network:
        device = torch.device("cpu")

        def embed(self, images, *, batch_size):
            if len(images) == len(train):  # the features of all of them are known now
                gone.write_bytes(content)
            return images.flatten(1).float()

    def near(k):
        return training_neighbours(Network(), whole(train).images[:2], train, k, batch_size=64, num_workers=0)

    content = gone.read_bytes()
    assert near(1)[1][0].distance == pytest.approx(0, abs=1e-6)
    content = b"half of an image"
    with raises_error(DataError, str(gone), "could be read before", "start the same command again"):
        near(len(train))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_untrained_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(2):
        array = np.random.default_rng(number).integers(0, 256, (9, 8), dtype=np.uint8)
        Image.fromarray(array).save(folder / f"{number}.png")
    (folder / "bad.png").write_text("no image")
    return folder


@pytest.mark.slow
def test_that_the_training_images_have_changed_is_said_beside_neighbours(tmp_path, capsys):
    for number in range(12):
        path = tmp_path / "data" / ("train", "val", "test")[number // 2 % 3] / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, 16, 16).save(path)
    words = [word for word in SMALL if not word.startswith(("data", "batch_size"))]
    words += ["data=imagefolder", f"data.root={tmp_path}/data", "data.image_size=16", "batch_size=2", f"runs_dir={tmp_path}"]
    run = fit([*words, "callbacks.pictures=null"], quiet=True).folder
    command = ["explain", str(run), f"images={tmp_path}/data/test", f"out={tmp_path}/out", "neighbours=1", "method=gradients"]
    command += ["device=cpu", "num_workers=0"]
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "have changed" not in capsys.readouterr().out
    (tmp_path / "data/train/a/0.png").rename(tmp_path / "data/train/a/new.png")
    assert cli.main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the images have changed since the training: 1 new, 1 gone" in said
    assert "new ones are left out" in said
    (tmp_path / "data").rename(tmp_path / "moved")
    command[2] = f"images={tmp_path}/moved/test"
    assert cli.main(command) == 2
    assert "Set data.root=FOLDER" in " ".join(capsys.readouterr().err.split())
    assert cli.main([*command, f"data.root={tmp_path}/moved"]) == 0


def test_the_command_writes_a_table_a_sheet_and_a_picture_of_each_image(run, files, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["explain", str(run), str(files), f"out={out}", "device=cpu", "neighbours=2", "num_workers=0"]) == 0
    said = capsys.readouterr().out
    assert "integrated gradients of input: " in said
    assert "1 file could not be read" in said
    with (out / "explain.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["method"]) for row in rows] == [
        *((str(files / f"{number}.png"), method) for number in range(2) for method in ("gradcam", "gradients")),
        (str(files / "bad.png"), ""),
    ]
    assert all(row["verdict"].startswith(("supported", "not supported: ")) for row in rows[:4])
    assert all(0 < float(row["p"]) <= 1 for row in rows[:4] if row["p"])
    assert {row["layer"] for row in rows[1:4:2]} == {"input"}
    assert rows[0]["neighbours"].count(";") == 1
    assert rows[4]["error"]
    names = sorted(path.name for path in out.iterdir())
    assert names == ["1_0.png", "2_1.png", "explain.csv", "explain.png"]
    with Image.open(out / "explain.png") as sheet:
        assert sheet.width > 5 * 144
    (out / "mine.png").write_bytes((out / "1_0.png").read_bytes())
    assert cli.main(["explain", str(run), str(files / "1.png"), f"out={out}", "device=cpu", "method=gradients"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["1_1.png", "explain.csv", "explain.png", "mine.png"]
    with Image.open(out / "explain.png") as sheet:  # with two pictures in a row the legend takes more lines
        assert np.asarray(sheet)[:, -MARGIN:].min() == 255


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["method=gradients", "layer=features"], ("layer=features", "method=gradients", "Leave it out")),
        (["areas=50"], ("areas=50", "100")),
        (["areas=999999999"], ("areas=999999999", "10000")),
        (["neighbours=99999999"], ("neighbours=99999999", "100")),
        (["images=[]"], ("images=[]", "Set images=")),
        (["layer=feature"], ("layer=feature", "layer=features")),
    ],
)
def test_settings_that_are_wrong_or_without_effect_are_refused(run, files, tmp_path, capsys, words, parts):
    images = [] if words == ["images=[]"] else [str(files)]
    assert cli.main(["explain", str(run), *images, f"out={tmp_path / 'out'}", "device=cpu", *words]) == 2
    assert_refused(capsys.readouterr().err, *parts)


def test_from_python_pictures_have_the_maps_of_the_command(run, files):
    predictor = load(run, device="cpu")
    paths = [files / f"{number}.png" for number in range(2)]
    found = explain_images(predictor, paths, method="gradcam", batch_size=1)
    assert [predictor.classes[one.label] for one in found] == [one.class_name for one in predictor.predict(paths)]
    images = torch.stack([one.image for one in found])
    expected = Explainer(predictor, images[:1], methods=["gradcam"]).maps("gradcam", images)[0]
    torch.testing.assert_close(torch.stack([one.maps[0].values for one in found]), expected)
    assert expected.dtype == torch.float32
    assert not explain_images(predictor, [])
    with raises_error(ConfigError, "areas=50", "100 or more"):
        explain_images(predictor, paths, areas=50)
    with raises_error(ConfigError, "method=cam", "gradcam"):
        explain_images(predictor, paths, method="cam")


def test_where_memory_runs_out_the_maps_are_those_of_fewer_images_at_once(run, monkeypatch):
    def forward(pixels):
        sizes.append(len(pixels))
        if len(pixels) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(pixels)

    predictor = load(run, device="cpu")
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    explainer = Explainer(predictor, images, methods=["gradients"], layer="features")
    expected = [explainer.maps(method, images)[0] for method in METHODS]
    hiding = explainer.explain(images[:1])[0].maps[0].verdict.hiding
    sizes, most, whole = [], 40, predictor.model.forward
    monkeypatch.setattr(predictor.model, "forward", forward)
    assert explainer.explain(images[:1])[0].maps[0].verdict.hiding == pytest.approx(hiding, abs=1e-6)
    assert max(sizes[sizes.index(32) :]) == 32  # what it has learned
    most = 2
    for method, values in zip(METHODS, expected, strict=True):
        torch.testing.assert_close(explainer.maps(method, images)[0], values)
    assert sizes[-1] == 1
    most = 0
    with raises_error(ConfigError, "device=cpu", "a single image"):
        explainer.maps("gradients", images)


def test_files_of_others_stay_and_missing_ones_are_named_by_their_key(run, files, tmp_path, capsys):
    (tmp_path / "explain.csv").write_text("mine")
    assert cli.main(["explain", str(run), str(files), f"out={tmp_path}", "device=cpu"]) == 2
    assert_refused(capsys.readouterr().err, f"out={tmp_path}/explain.csv", "overwrite=true")
    assert (tmp_path / "explain.csv").read_text() == "mine"
    assert cli.main(["explain", str(run), "images=none.png"]) == 2
    assert_refused(capsys.readouterr().err, "images=none.png", "Set images=")
    assert cli.main(["explain", str(tmp_path / "none")]) == 2
    assert_refused(capsys.readouterr().err, f"{tmp_path}/none", "no such file", "run directory")


def test_a_network_that_knows_a_mark_points_at_it():
    stripes = torch.tensor([-1.0, -1.0, 1.0, 1.0])[:, None].expand(3, 4, 4) / 48
    net = nn.Sequential(nn.Conv2d(3, 2, 4), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.stack([stripes.mT, stripes]))
        net[0].bias.fill_(-0.8)
        net[5].weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]]))
        net[5].bias.copy_(torch.tensor([0.0, 0.0, 1e-3]))  # without a mark no filter sees anything
    accuracy, found = pointed_at(net, 40, 18)
    assert accuracy == 1.0
    assert found == {"gradcam": 1.0, "gradients": 1.0}


NATIVE = [network.name for network in candidates(CatalogQuery())]


@pytest.mark.slow
@pytest.mark.parametrize("name", NATIVE)
def test_every_network_points_at_a_mark_by_which_it_knows_the_class(name):
    network = next(network for network in candidates(CatalogQuery(num_classes=MARKS + 1)) if network.name == name)
    side = 32 if name.startswith("vgg") else min(network.image_size, 64)
    torch.manual_seed(0)
    net = replace(network, image_size=side).build()
    learn_marks(net, side, 1500)
    accuracy, found = pointed_at(net, side)
    print(name, f"accuracy {accuracy:.2f}", found)
    assert accuracy >= 0.95
    assert found["gradients"] >= 0.95
