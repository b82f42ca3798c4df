"""The config: every number has a range that is kept, values against types, the nearest word, and a tree that comes back from yaml."""

import json
import os
import re
import time
import typing
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from error_parts import raises_error
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from marks import slow_but
from omegaconf import OmegaConf

from imgrec.config.annotations import describe_type, format_value, matches_type
from imgrec.config.checks import NEEDS, all_keys
from imgrec.config.compose import _shipped_options, compose_config, hydra_tree
from imgrec.config.instantiate import instantiate, parameter_types
from imgrec.config.load import compose_run, load_config
from imgrec.config.options import conf_dir, group_names, option_names
from imgrec.config.plain_data import dump_yaml, read_plain
from imgrec.config.ranges import RANGES, Range, check_range
from imgrec.config.schema import run_config
from imgrec.errors import ConfigError, DataError, did_you_mean

# Ranges


def numbers() -> dict[str, Any]:
    """Dotted name to default of every number, or list of numbers, in conf/: the composed default of every option."""
    found: dict[str, Any] = {}

    def walk(node: dict[str, Any], prefix: str) -> None:
        for key, value in node.items():
            first = value[0] if isinstance(value, list) and value else value
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            elif isinstance(first, int | float) and not isinstance(first, bool):
                found[prefix + key] = value

    for file in conf_dir().rglob("*.yaml"):
        walk(yaml.safe_load(file.read_text()), "" if file.parent == conf_dir() else f"{file.parent.name}.")
    return found


@pytest.mark.parametrize(
    ("path", "default"), sorted(numbers().items()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_number_has_a_range_that_its_default_keeps(path, default):
    key = path.rpartition(".")[2]
    limits = RANGES.get(path, Range(0))
    check_range(path, default, default)
    outside = [limits.low - 1, *([limits.low] if limits.open_low else []), float("nan"), float("inf")]
    outside += [limits.high + 1, *([limits.high] if limits.open_high else [])] if limits.high < float("inf") else []
    for value in outside:
        with raises_error(ConfigError, f"{path}={format_value(value)}", key):
            check_range(path, value, default)
        with raises_error(ConfigError, f"{path}={format_value([default, value])}", key):
            check_range(path, [default, value], default)


def test_no_range_and_no_need_is_left_over_from_a_key_that_is_gone():
    null = {
        "augment.crop_scale",
        "coverage",
        "cpus_per_task",
        "data.scale",
        "data.window_shards",
        "network_threads",
        "optim.base_batch",
        "risk",
        "tasks_per_node",
        "trainer.grace_s",
        "trainer.max_minutes",
        "trainer.num_nodes",
        "trainer.save_every_steps",
        "trainer.threads",
    }
    assert RANGES.keys() - numbers().keys() == null  # their defaults are no numbers
    trees = [
        *(compose_config("train", [f"optim={option}"]) for option in ("momentum", "nesterov")),
        compose_config("predict", []),
        compose_config("pack", []),
    ]
    known = {key for tree in trees for key, _ in all_keys(tree)}
    assert NEEDS.keys() <= known


@pytest.mark.slow
def test_a_range_is_that_of_the_shipped_code_and_not_of_a_key_of_the_same_name(tmp_path):
    """widths and dropout have ranges in conf/model/simple_cnn.yaml; what they mean to a network of one's own, only that one knows."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text("_target_: mine.Net\nwidths: [-4]\ndropout: 5.0\nmore: {lr: -1}\n")
    tree = compose_config("train", ["model=mine", "model.dropout=7"], str(tmp_path))
    assert tree["model"] == {"_target_": "mine.Net", "widths": [-4], "dropout": 7.0, "more": {"lr": -1}}
    (tmp_path / "model/mine.yaml").write_text("_target_: imgrec.models.simple_cnn.SimpleCNN\nwidths: [-4]\ndropout: 5.0\n")
    with raises_error(ConfigError, "model.widths=[-4]", "1 or more"):
        compose_config("train", ["model=mine"], str(tmp_path))


def test_a_share_is_no_number_of_batches():
    tree = compose_config(
        "train", ["trainer.limit_train_batches=1", "trainer.limit_val_batches=1.0", "trainer.limit_test_batches=0.5"]
    )
    given = [tree["trainer"][f"limit_{split}_batches"] for split in ("train", "val", "test")]
    assert [(value, type(value)) for value in given] == [(1, int), (1.0, float), (0.5, float)]


@pytest.mark.slow
def test_needs_are_met_by_what_the_sentence_says():
    load_config("train", ["augment=randaug", "augment.randaug_ops=3"])
    load_config("train", ["augment.policy=autoaug", "augment.autoaug_policy=svhn"])
    load_config("train", ["optim=momentum", "optim.dampening=0.1", "decay_on=all"])
    load_config("train", ["data.resize=crop", "data.crop_share=0.9", "loss.l2=0.1", "decay_on=all"])
    load_config("train", ["weights=DEFAULT", "finetune.freeze_epochs=2", "callbacks.early_stopping.patience=3"])
    load_config("train", ["optim=gd", "batch_size=full"])
    load_config("train", ["optim.base_batch=256", "optim.batch_rule=linear"])
    load_config("train", ["experiment=mnist_cnn", "optim.batch_rule=none"])


# Composition


def test_values_take_the_type_of_the_default():
    run = load_config("train", ["optim.lr=1", "id=7", "trainer.precision=32", "optim.betas=[0,0.5]"])
    assert [(value, type(value)) for value in (run.optim["lr"], run.id, run.trainer.precision)] == [
        (1.0, float),
        ("7", str),
        ("32", str),
    ]


def test_a_key_of_the_trainer_takes_the_values_of_its_annotation_beside_any_option():
    for option in ("default", "debug"):
        for devices in ("auto", 2, [0, 1]):
            assert load_config("train", [f"trainer={option}", f"trainer.devices={devices}"]).trainer.devices == devices
        for wrong in ("trainer.max_minutes=abc", "trainer.num_nodes=abc", "trainer.pruning_thresholds=[a]", "data.resize=fit"):
            with pytest.raises(ConfigError, match=f"^{re.escape(wrong)}: expected "):
                compose_config("train", [f"trainer={option}", wrong])


def test_the_last_of_two_values_wins_and_choices_come_before_values():
    run = load_config("train", ["optim.lr=0.3", "optim=sgd", "seed=1", "seed=2"])
    assert run.optim["_target_"] == "torch.optim.SGD"
    assert (run.optim["lr"], run.seed) == (0.3, 2)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("hydra.run.dir=x", "no key hydra.run.dir"),  # Hydra has it, and nothing here reads it
        ("~seed", "seed=VALUE"),
        ("+seed=3", "Type seed=3"),
        ("optim.lr=0.1,0.2", "train -m optim.lr=0.1,0.2"),
        ("seed=range(0,3)", "train -m 'seed=range(0,3)'"),
        ("optim=adam,sgd", "train -m optim=adam,sgd"),
        ("seed@x=3", "Type seed=VALUE"),
    ],
)
def test_what_hydra_accepts_and_a_single_run_does_not_use_is_refused(override, hint):
    with pytest.raises(ConfigError) as error:
        compose_config("train", [override])
    assert override in str(error.value)
    assert hint in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["optim=sgd", "optim.lr=0.02", "data.image_size=32"],
        ["experiment=mnist_cnn", "data.image_size=64", "class_weights={a:1,b:2}"],
        ["augment=light", "augment.fill=[1,2,3]", "name='a b=c'", "optim.lr=${seed}"],
    ],
)
def test_keys_change_a_composed_tree_as_hydra_does_it(overrides):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        whole = OmegaConf.to_container(compose("train", overrides), resolve=True)
    options = [text for text in overrides if text.partition("=")[0] in group_names()]
    keys = OverridesParser.create().parse_overrides([text for text in overrides if text not in options])
    values = [(key.key_or_group, key.value(), False) for key in keys]
    assert hydra_tree("train", options, None, values)[0] == whole


def test_what_follows_from_the_image_size():
    small, large = (load_config("train", ["data=fake", "augment=basic", f"data.image_size={size}"]) for size in (63, 64))
    assert (small.model["stem"], large.model["stem"]) == ("small", "imagenet")
    assert (small.augment["crop_scale"], large.augment["crop_scale"]) == (None, [0.35, 1.0])


def test_a_folder_of_ones_own_adds_options_and_may_be_named_by_a_recipe(tmp_path):
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim/mine.yaml").write_text("_target_: torch.optim.Adadelta\n_partial_: true\nlr: 1.0\nrho: 0.8\n")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /optim: mine\nepochs: 3\noptim:\n  rho: 0.7\n"
    )
    run = load_config("train", ["experiment=mine", "optim.lr=2"], str(tmp_path))
    assert (run.optim, run.epochs) == ({"_target_": "torch.optim.Adadelta", "_partial_": True, "lr": 2.0, "rho": 0.7}, 3)
    assert run.name == "mine"
    assert load_config("train", ["optim=mine", "optim.rho=0.6"], str(tmp_path)).optim["rho"] == 0.6


@pytest.mark.slow
def test_a_folder_of_ones_own_is_read_as_it_is_now(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def rate(value=None, folder="own", file="own/optim/mine.yaml"):
        if value is not None:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(f"defaults: [sgd, _self_]\nlr: {value}\n")
            os.utime(file, (1, 1))
        return load_config("train", ["optim=mine"], folder).optim["lr"]

    assert rate(0.1) == 0.1
    assert rate(0.2) == 0.2  # at the same time of change, as copied files have
    Path("linked").mkdir()
    Path("linked/optim").symlink_to(tmp_path / "own/optim")
    assert rate(folder="linked") == 0.2
    assert rate(0.3, folder="linked") == 0.3
    assert rate(0.4, file="other/own/optim/mine.yaml") == 0.3
    monkeypatch.chdir("other")
    assert rate() == 0.4
    Path("own/optim/.#mine.yaml").symlink_to("a lock of Emacs")
    Path("own/optim/loop.yaml").symlink_to("loop.yaml")
    assert rate(0.5) == 0.5
    Path("own/experiment").mkdir()
    Path("own/experiment/mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /model: ${oc.env:NET}\n")
    for net, name in (("vgg", "vgg"), ("lenet", "LeNet")):
        monkeypatch.setenv("NET", net)
        assert load_config("train", ["experiment=mine"], "own").model["_target_"].endswith(name)


@pytest.mark.parametrize("name", slow_but("a b=c,d", "${a}", among=["a b=c,d", "it's [a] {b: c}", "häuser #2", "${a}"]))
def test_a_folder_of_ones_own_has_any_name(name, tmp_path):
    (tmp_path / name / "optim").mkdir(parents=True)
    (tmp_path / name / "optim/mine.yaml").write_text("defaults: [sgd, _self_]\nlr: 0.6\n")
    assert load_config("train", ["optim=mine"], str(tmp_path / name)).optim["lr"] == 0.6


def test_a_config_needs_no_resolver_that_was_registered_before():
    load_config("train", [])
    OmegaConf.clear_resolvers()
    assert load_config("train", []).model["stem"] == "small"


@pytest.mark.parametrize(
    ("override", "hint"),
    [(f"optim.lr={'9' * 400}", "more than 0"), (f"loss.l1=-{'9' * 400}", "0 or more"), ("loss._target_=[a]", "expected text")],
)
def test_numbers_and_types_of_any_kind_are_refused_in_a_sentence(override, hint):
    with pytest.raises(ConfigError, match=hint):
        compose_config("train", [override])


def test_only_a_training_is_told_of_sweeps():
    for command, override in (("evaluate", "batch_size=1,2"), ("predict", "top_k=1,2"), ("slurm", "nodes=1,2")):
        with pytest.raises(ConfigError, match=r"has several values\. Type \w+=VALUE\."):
            compose_config(command, [override])


PLAIN = load_config("train", [])
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=25)  # a thirtieth of a second each
@given(
    seed=st.integers(0, 2**32 - 1),
    lr=st.floats(min_value=1e-300, allow_infinity=False, allow_nan=False),
    name=WORDS,
    weights=st.none() | WORDS,
    batch_size=st.integers(1) | st.just("full"),
    mean=st.lists(st.floats(0, 1)),
)
def test_a_config_comes_back_from_its_yaml(tmp_path_factory, seed, lr, name, weights, batch_size, mean):
    change = {"seed": seed, "name": name, "weights": weights, "batch_size": batch_size}
    run = run_config(
        {**PLAIN.to_dict(), **change, "optim": {**PLAIN.optim, "lr": lr}, "data": {**PLAIN.data.to_node(), "mean": mean}}
    )
    file = tmp_path_factory.getbasetemp() / "config.yaml"
    file.write_text(dump_yaml(run.to_dict()))
    assert run_config(read_plain(file, fix="")) == run


TEXTS = st.text(st.characters(exclude_categories=[]))  # with surrogates, as in names of files that are not UTF-8
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.dates() | TEXTS


@example(content={"a\udce9": "\ud800"})  # libyaml writes no surrogates
@given(content=st.dictionaries(TEXTS, VALUES | st.lists(VALUES) | st.dictionaries(TEXTS, VALUES), max_size=5))
def test_a_yaml_file_is_read_as_it_was_written(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "written.yaml"
    file.write_text(dump_yaml(content))
    assert read_plain(file, fix="") == content


def test_a_json_file_may_have_more_values_than_a_config(tmp_path):
    content = {"confusion": [[0] * 400] * 400}
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert read_plain(tmp_path / "result.json", fix="") == content


@pytest.mark.parametrize(
    "text", ["a: [1", "\t- b", "a: *b", "&a [*a]", "- " * 1100, "a: 2000-13-40", "a: \x00", "!!python/name:os.system"]
)
def test_a_yaml_file_that_is_none_is_refused_with_what_pyyaml_says(tmp_path, monkeypatch, text):
    (tmp_path / "a.yaml").write_text(text)
    said = []
    for with_libyaml in (True, False):
        monkeypatch.setattr(yaml, "__with_libyaml__", with_libyaml)
        with pytest.raises(DataError) as error:
            read_plain(tmp_path / "a.yaml", fix="")
        said.append(str(error.value))
    assert said[0] == said[1]


def test_what_is_not_a_runs_is_left_out_and_what_it_lacks_is_an_error():
    assert run_config({**PLAIN.to_dict(), "lr_min": 1}) == PLAIN
    with pytest.raises(KeyError, match="seed"):
        run_config({key: value for key, value in PLAIN.to_dict().items() if key != "seed"})


@pytest.mark.parametrize(
    ("node", "parts"),
    [
        ({}, ("a config group", "_target_", "empty")),
        ({"lr": 1}, ("a config group", "_target_", "lr")),
        ({"_target_": "SGD"}, ("_target_=SGD", "PACKAGE.MODULE.NAME")),
        ({"_target_": None}, ("_target_=None", "PACKAGE.MODULE.NAME")),
    ],
)
def test_a_group_names_what_it_calls(node, parts):
    with raises_error(ConfigError, *parts):
        instantiate(node)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"precison": "32"}, ("trainer.precison=32", "precision")),
        ({"precision": ...}, ("trainer.precision", "defaults: [default, _self_]")),
    ],
)
def test_a_group_of_ones_own_has_the_keys_of_its_type(change, parts):
    trainer = {key: value for key, value in (PLAIN.to_dict()["trainer"] | change).items() if value is not ...}
    with raises_error(ConfigError, *parts):
        run_config(PLAIN.to_dict() | {"trainer": trainer})


# Values and types

# An annotation, and the values that a type checker would let through (JSON's lists stand for tuples).
ATOMS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (bool, st.booleans()),
    (int, st.integers()),
    (float, st.floats() | st.integers()),
    (str, st.text()),
    (type(None), st.none()),
    (Literal["a", "b", 3], st.sampled_from(["a", "b", 3])),
]
OUTSIDE: dict[Any, list[Any]] = {
    bool: [0, 1, "true", None],
    int: [True, 1.0, "1", None],
    float: [False, "1.0", None],
    str: [1, True, None, ["a"]],
    type(None): [0, False, "", "null"],
    Literal["a", "b", 3]: ["c", 4, None, True],
}


@given(data=st.data(), atom=st.sampled_from(ATOMS), other=st.sampled_from(ATOMS))
def test_values_of_a_type_match_it_alone_in_unions_lists_and_tuples(data, atom, other):
    hint, values = atom
    value, second = data.draw(values), data.draw(other[1])
    assert matches_type(value, hint)
    assert matches_type(value, typing.Union[hint, other[0]])  # noqa: UP007
    assert matches_type([value, value], list[hint])
    assert matches_type([], list[hint])
    assert matches_type([value, second], tuple[hint, other[0]])
    assert matches_type([value] * 3, tuple[hint, ...])
    assert not matches_type([value], tuple[hint, other[0]])
    assert matches_type({"key": value}, dict[str, hint])
    assert not matches_type(value, list[hint])


def test_types_are_described_apart():
    said = {describe_type(hint): hint for hint, _ in ATOMS}
    assert len(said) == len(ATOMS)
    assert describe_type(Literal["a", "b", 3]) == describe_type(Literal["a", "b"] | Literal[3]) == "a, b or 3"
    assert describe_type(int | None) == f"{describe_type(int)} or {describe_type(type(None))}"
    assert describe_type(list[float]) == f"a list of {describe_type(float).removeprefix('a ')}s"
    assert describe_type(tuple[float, float]) == "a list of 2 values"


@given(data=st.data(), hint=st.sampled_from(list(OUTSIDE)))
def test_other_values_do_not_match(data, hint):
    wrong = data.draw(st.sampled_from(OUTSIDE[hint]))
    assert not matches_type(wrong, hint)
    assert not matches_type([wrong], list[hint])
    assert not matches_type([wrong], tuple[hint, ...])
    assert not matches_type({"key": hint}, list[hint])


def test_parameters_are_those_of_the_parents_too_where_keywords_are_passed_on():
    class Parent:
        def __init__(self, *, a: int, b: str) -> None: ...

    class Child(Parent):
        def __init__(self, *, c: float, b: Literal["x"], **common: Any) -> None: ...

    class Closed(Child):
        def __init__(self, *, d: int) -> None: ...

    assert parameter_types(Child) == {"c": float, "b": Literal["x"], "a": int}
    assert parameter_types(Closed) == {"d": int}


# The nearest word


@given(word=st.text(), known=st.lists(st.text()))
def test_did_you_mean_names_a_known_word_or_nothing(word, known):
    said = did_you_mean(word, known)
    assert said in ["", *(f" Did you mean {one}?" for one in known)]


# Of distinct letters: where they repeat, difflib may match fewer of them than there are in common.
@given(word=st.permutations("abcdefghi").map(lambda letters: "".join(letters[:6])), drop=st.integers(0, 5))
def test_did_you_mean_names_the_word_that_lacks_a_letter(word, drop):
    given = word[: drop % len(word)] + word[drop % len(word) + 1 :]
    assert did_you_mean(given, ["vvvv", word, "wwwwww"]) == f" Did you mean {word}?"


@pytest.mark.parametrize(
    ("word", "meant"),
    [("resnt", "resnet"), ("RESNET", "resnet"), ("ResNet-50", "resnet50"), ("vgg16bn", "vgg16_bn"), ("zzz", None)],
)
def test_did_you_mean(word, meant):
    assert did_you_mean(word, option_names("model")) == ("" if meant is None else f" Did you mean {meant}?")


@pytest.mark.slow
def test_threads_compose_one_after_the_other_what_they_compose_at_once(monkeypatch):
    inside, most = [], []

    @contextmanager
    def counted(*words, **options):
        with initialize_config_dir(*words, **options):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)  # without a lock others come in meanwhile
            yield
            inside.pop()

    models = ("lenet", "vgg", "simple_cnn", "alexnet")
    cases = [[f"model={model}", f"optim.lr={lr}.5"] for model in models for lr in (1, 2)]
    expected = [load_config("train", case) for case in cases]
    _shipped_options.cache_clear()
    monkeypatch.setattr("hydra.initialize_config_dir", counted)
    with ThreadPoolExecutor(len(cases)) as pool:
        assert list(pool.map(partial(load_config, "train"), cases)) == expected
    assert len(most) >= len(models)
    assert set(most) == {1}


@pytest.mark.parametrize(("command", "key"), [("benchmark", "seconds"), ("lr_find", "lr_min"), ("lr_find", "plot")])
def test_null_is_no_value_of_a_key_that_a_command_adds_to_a_training(command, key):
    with raises_error(ConfigError, f"{key}=null", "expected a value", "default"):
        compose_run(command, ["data=digits", f"{key}=null"])


def test_a_cache_of_shards_may_have_half_a_gigabyte():
    assert load_config("train", ["data=shards", "data.root=https://host/set", "data.cache_gb=0.5"]).data.own["cache_gb"] == 0.5
