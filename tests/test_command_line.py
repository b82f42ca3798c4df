"""The words of a command line: texts as they are typed, short forms, and what to type instead of a word that is no override."""

import re
import shlex
import typing
from pathlib import Path

import pytest
from error_parts import raises_error
from hypothesis import example, given, settings
from hypothesis import strategies as st
from marks import fewer, slow_but

from imgrec import cli
from imgrec.check import CheckConfig
from imgrec.compare import CompareConfig
from imgrec.config.checks import all_keys
from imgrec.config.compose import compose_config, read_overrides
from imgrec.config.load import load_config
from imgrec.config.schema import Node, dotted_types
from imgrec.config.values import is_text
from imgrec.errors import ConfigError, ImgrecError, nearest
from imgrec.evaluate import EvaluateConfig
from imgrec.explain import ExplainConfig
from imgrec.pack import PackConfig
from imgrec.predict import PredictConfig
from imgrec.slurm import JobConfig
from imgrec.sweeps.grid import plan_sweep

TYPES = {
    "evaluate": dotted_types(EvaluateConfig),
    "predict": dotted_types(PredictConfig),
    "explain": dotted_types(ExplainConfig),
    "compare": dotted_types(CompareConfig),
    "slurm": dotted_types(JobConfig),
    "pack": dotted_types(PackConfig),
    "check": dotted_types(CheckConfig),
}
ODD = [
    "a b",
    "[2024]",
    "a (1)",
    "größe",
    "日本",
    "#1",
    "it's",
    "a,b",
    "a=b",
    "{x}",
    "a:b",
    "007",
    "1e3",
    "true",
    "*",
    "a\\",
    "-x",
    '"',
    "x ",
]
# Every letter that a file name may have; `${` is an interpolation, quotes around all of it are those of Hydra.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(
    lambda text: text != "null" and "${" not in text and text[0] != "~" and not (text[0] in "'\"" and text[-1] == text[0])
)


def value(tree: Node, key: str) -> object:
    for part in key.split("."):
        tree = tree[part]
    return tree


def compose(command: str, *words: str) -> Node:
    return compose_config(command, words, types=TYPES.get(command))


TEXT_KEYS = {
    "train": ["data.root", "weights", "name", "runs_dir", "id"],
    "lr_find": ["plot", "weights"],
    **{
        command: [key for key, hint in types.items() if is_text(hint, or_list=True) and "Literal" not in str(hint)]
        for command, types in TYPES.items()
    },
}


@pytest.mark.parametrize("command", TEXT_KEYS)
@fewer(4)
@given(text=TEXTS)
def test_a_text_is_taken_as_it_is_typed(command: str, text: str) -> None:
    folder = ["data=imagefolder"] if command == "train" else []
    keys = [key for key in TEXT_KEYS[command] if not (key == "files" and re.fullmatch(r"\[.*\]", text, re.DOTALL))]
    tree = compose(command, *folder, *(f"{key}={text}" for key in keys))
    assert {key: value(tree, key) for key in keys} == dict.fromkeys(keys, text)


@pytest.mark.parametrize("name", slow_but(*list(ODD)[::12], among=ODD))
def test_a_folder_of_any_name_is_found_in_every_form(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    wanted = load_config("train", ["data=imagefolder", "data.root=x"]).to_dict()
    wanted["data"]["root"] = name
    forms = [["data=imagefolder", f"data.root={name}"], [f"data={name}"], *([] if name == "-x" else [[name]])]
    for words in forms:
        assert load_config("train", words).to_dict() == wanted
        plan = plan_sweep([*words, "seed=3,4"], None)
        assert [load_config("train", job).to_dict() for job in plan.grid()] == [wanted | {"seed": 3}, wanted | {"seed": 4}]


def test_a_home_directory_is_that_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my photos").mkdir()
    for words in (["~/my photos"], ["data=~/my photos"], ["data=imagefolder", "data.root=~/my photos"]):
        assert load_config("train", words).data.own["root"] == f"{tmp_path}/my photos"
    assert load_config("train", ["weights=~/a.ckpt"]).weights == f"{tmp_path}/a.ckpt"
    assert compose("predict", "files=[~/a.jpg,b c.jpg]")["files"] == [f"{tmp_path}/a.jpg", "b c.jpg"]
    (tmp_path / "mine/data").mkdir(parents=True)
    (tmp_path / "mine/data/own.yaml").write_text("defaults: [imagefolder, _self_]\nroot: ~/x\n")
    assert load_config("train", ["data=own"], str(tmp_path / "mine")).data.own["root"] == f"{tmp_path}/x"


def test_quotes_around_a_value_null_and_interpolation_keep_their_meaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "somewhere")
    run = load_config("train", ["name='a,b'", "runs_dir=${oc.env:PLACE}/runs", "weights=null", 'id="null"'])
    assert (run.name, run.runs_dir, run.weights, run.id) == ("a,b", "somewhere/runs", None, "null")
    monkeypatch.chdir(tmp_path)
    Path("'a'").mkdir()
    assert load_config("train", ["runs_dir='a'"]).runs_dir == "'a'"


@pytest.mark.slow
def test_the_comma_of_a_sweep_parts_texts_as_it_parts_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for typed, values in (("a b,ü", ["a b", "ü"]), ("a,b", ["a", "b"]), ("'a,b',c", ["a,b", "c"]), ("choice(a,b)", ["a", "b"])):
        plan = plan_sweep([f"weights={typed}", "seed=0,1"], None)
        assert [load_config("train", job).weights for job in plan.grid()] == [one for one in values for _ in "01"]
    Path("x,y").touch()
    assert plan_sweep(["weights=x,y", "seed=0,1"], None).base["weights"] == "x,y"
    Path("cats").mkdir()
    Path("dogs").mkdir()
    plan = plan_sweep(["data=cats,dogs", "seed=0"], None)
    assert [load_config("train", job).data.own["root"] for job in plan.grid()] == ["cats", "dogs"]


@pytest.mark.parametrize(
    ("command", "short", "long"),
    [
        ("train", ["photos", "epochs=2"], ["data=imagefolder", "data.root=photos", "epochs=2"]),
        ("train", ["data=photos"], ["data=imagefolder", "data.root=photos"]),
        ("train", ["data=imagenet", "photos"], ["data=imagenet", "data.root=photos"]),
        ("lr_find", ["photos", "steps=5"], ["data=imagefolder", "data.root=photos", "steps=5"]),
        ("evaluate", ["runs/a/1", "split=val"], ["ckpt=runs/a/1", "split=val"]),
        ("compare", ["runs/a/1"], ["runs=runs/a/1"]),
        ("compare", ["runs/a/1", "runs/a/2", "seed=1", "b,c"], ["runs=[runs/a/1,runs/a/2,'b,c']", "seed=1"]),
        ("predict", ["runs/a/1", "a b.jpg"], ["ckpt=runs/a/1", "files=a b.jpg"]),
        ("predict", ["runs/a/1", "photos/**/*.jpg"], ["ckpt=runs/a/1", "files=photos/**/*.jpg"]),
        ("predict", ["ckpt=runs/a/1", "a.jpg", "b,c.jpg"], ["ckpt=runs/a/1", "files=[a.jpg,'b,c.jpg']"]),
        ("explain", ["runs/a/1", "a.jpg", "b.jpg"], ["ckpt=runs/a/1", "images=[a.jpg,b.jpg]"]),
        ("predict", ["runs/a/1", 'it\'s "x".jpg', "b", "top_k=2"], None),
    ],
)
def test_short_forms(
    command: str, short: list[str], long: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    tree = compose(command, *short)
    if long is None:
        assert (tree["ckpt"], tree["files"], tree["top_k"]) == ("runs/a/1", ['it\'s "x".jpg', "b"], 2)
    else:
        assert tree == compose(command, *long)


def test_a_shipped_data_set_comes_before_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mnist").mkdir()
    assert load_config("train", ["data=mnist"]).data.own["_target_"].endswith("MNIST")
    assert load_config("train", ["mnist"]).data.own["root"] == "mnist"


# What is no override

KEYS = {
    key: default for key, default in all_keys(compose_config("train", [])) if not isinstance(default, dict) and key[-1] != "_"
}


@given(key=st.sampled_from(sorted(key for key, default in KEYS.items() if isinstance(default, int | float))), data=st.data())
def test_a_word_with_dashes_or_without_equals_is_refused_with_the_line_to_type(key: str, data: st.DataObject) -> None:
    number = str(KEYS[key]).lower()
    dashed = f"--{key.replace('_', '-')}"
    form = data.draw(
        st.sampled_from([[dashed, number], [f"{dashed}={number}"], [f"--{key}", number], [key, number], [key, "=", number]])
    )
    before, after = (data.draw(st.sampled_from([[], ["seed=3"], ["model=vgg"]])) for _ in "ab")
    with raises_error(
        ConfigError, repr(" ".join(form)), "key=value", shlex.join(["imgrec", "train", *before, f"{key}={number}", *after])
    ):
        read_overrides("train", [*before, *form, *after])


@pytest.mark.parametrize(
    ("command", "word", "reason", "typed"),
    [
        ("train", "phots", "no such folder", "photos"),
        ("tune", "my/foto", "no such folder", "'my/photo s'"),
        ("train", "resnett", "key=value", "model=resnet"),
        ("train", "epoch", "key=value", "epochs=VALUE"),
        ("train", "lr", "key=value", "optim.lr=VALUE"),
        ("train", "help", "key=value", "--help"),
        ("predict", "--hlep", "key=value", "--help"),
    ],
)
def test_a_word_is_refused_with_the_folder_option_or_key_that_is_near(
    command: str, word: str, reason: str, typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("my/photo s").mkdir(parents=True)
    Path("phots.csv").touch()  # is no folder
    with raises_error(ConfigError, repr(word), reason, f"Type imgrec {command} {typed}"):
        read_overrides(command, [word])


@pytest.mark.parametrize(
    ("words", "near"),
    [
        ("phots epochs=2", "Type imgrec train photos epochs=2."),
        ("train data=phots", "Did you mean photos?"),
        ("train data=imagefolder data.root=phots", "Did you mean photos?"),
        ("train data=digits weights=rnus/n/1", "Did you mean runs/n/1?"),
        ("train data=digits continue_from=rnus/n/1", "Did you mean runs/n/1?"),
        ("train data=digits distill.teacher=rnus/n/1", "Did you mean runs/n/1?"),
        ("train --config-dir phots", "Did you mean photos?"),
        ("predict runs/nn/1 photos", "Did you mean runs/n/1?"),
        ("evaluate runs/n/1 folder=phots", "Did you mean photos?"),
        ("verify photos/model.onx", "Did you mean photos/model.onnx?"),
        ("report rnus/n/1", "Did you mean runs/n/1?"),
    ],
)
def test_a_path_that_does_not_exist_is_refused_with_the_one_that_is_near(
    words: str, near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("photos/model.onnx").touch()
    Path("runs/n/1/checkpoints").mkdir(parents=True)
    Path("runs/n/1/checkpoints/best.ckpt").write_bytes(b"PK\x03\x04")
    assert cli.main(words.split()) == 2
    said = capsys.readouterr().err
    assert (near in said, said.count("\n")) == (True, 1), said


VALUES = st.text(max_size=12) | st.sampled_from(
    [
        "[",
        "{",
        "${",
        "${x}",
        "[1,",
        "{a:",
        "a=b",
        "1,2",
        "0,5",
        "choice(1",
        "glob(*)",
        "range(1,2)",
        "tag(a,1)",
        "'",
        "[[[[1]]]]",
        "9" * 5000,
        "{" * 900,
        "???",
        "[1]",
        "{a: 1}",
    ]
)
PARSERS = re.compile(
    r"Exception|Error\b|Lexer|Parser|Token|BRACE|BRACKET|Hydra|OmegaConf|antlr|Alt\b|<EOF>|mismatched input|extraneous"
    r"|DictConfig|ListConfig|Missing|cannot be composed"
)


@settings(max_examples=40)  # a twentieth of a second each
@example(command="train", mark="~", key="name", equals="=", text="\0")
@example(command="train", mark="", key="finetune", equals="=", text="[1]")
@example(command="train", mark="", key="data.image_size", equals="=", text="???")
@given(
    command=st.sampled_from(["train", "lr_find", "evaluate", "predict", "pack", "check", "slurm"]),
    mark=st.sampled_from(["", "", "", "+", "++", "~", "-", "--"]),
    key=st.sampled_from([*KEYS, "model", "data", "ckpt", "files", "nodes", "data.root"]) | st.text(max_size=8),
    equals=st.sampled_from(["=", "=", "=", " ", ""]),
    text=VALUES,
)
def test_no_word_of_a_parser_reaches_the_screen(command: str, mark: str, key: str, equals: str, text: str) -> None:
    word = f"{mark}{key}{equals}{text}"
    said = ""
    try:
        compose(command, word)
    except ImgrecError as error:
        said = str(error)
    assert not PARSERS.search(said.replace(word, "").replace(text, ""))


# Names


WRONG = {
    "folds=3",
    "spaces.0=x",
    "no_such_key=1",
    "+no_such_key=1",
    "data.x=1",
    "ckpt.x=1",
    "--no-such-key",
    "hydra.x=1",
    "a.b.c=1",
}


@pytest.mark.parametrize(
    "command", slow_but("tune", "soup", among=[name for name in cli.COMMANDS if name not in ("train", "slurm")])
)
def test_a_wrong_key_names_the_help_of_its_own_command(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of slurm are a training's."""
    monkeypatch.chdir(tmp_path)
    for word in WRONG:
        assert cli.main([command, word]) == 2
        said = capsys.readouterr().err
        assert set(re.findall(r"imgrec (\w+) --help", said)) <= {command}, said
        assert word.lstrip("+-").partition("=")[0] in said


@given(st.sampled_from(["adamw", "resnet50", "fashion_mnist", "epochs"]), st.data())
def test_capitals_and_dashes_are_no_difference(word: str, data: st.DataObject) -> None:
    typed = "".join(
        data.draw(st.sampled_from([letter, letter.upper()])) for letter in word.replace("_", data.draw(st.sampled_from("-_ ")))
    )
    assert nearest(typed, ["adam", "adamw", "resnet", "resnet50", "mnist", "fashion_mnist", "epochs"]) == word


def test_the_types_of_a_command_are_those_of_its_dataclass() -> None:
    assert TYPES["evaluate"]["data.root"] == str | None
    assert typing.get_args(TYPES["predict"]["files"]) == (str, list[str], type(None))


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "loop"],
        ["pack", "photos", "out=loop"],
        ["check", "photos", "out=loop.json"],
        ["check", "photos", "out=null.json"],
    ],
    ids=" ".join,
)
def test_links_that_are_a_loop_and_paths_that_are_none_end_in_a_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos/train/a").mkdir(parents=True)
    for name in ("loop", "loop.json"):
        Path(name).symlink_to(name)
    Path("null.json").write_text('{\n "imgrec": "check",\n "root": "a\\u0000b"}')
    assert cli.main(words) != 0
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
