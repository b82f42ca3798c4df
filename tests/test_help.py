"""What --help says is what the yaml says."""

import pytest
import yaml

import imgrec
from imgrec import cli
from imgrec.config.compose import compose_config
from imgrec.config.help import EXAMPLES, documented, help_text
from imgrec.config.options import conf_dir, option_names

ROOT = yaml.safe_load((conf_dir() / "train.yaml").read_text())
GROUPS = {name: default for entry in ROOT["defaults"] if isinstance(entry, dict) for name, default in entry.items()}
COMMANDS = [name for name in cli.COMMANDS if (conf_dir() / f"{name}.yaml").is_file()]


def test_documented_reads_comments_on_the_line_and_above():
    source = "# header\na: 1   # one\n# two lines,\n# above\nb:\n  c: 'x # y'  # inside\n  d: [1,\n    2]\ne:\nf: ${a}\n"
    assert documented(source) == [
        (("a",), "1", "one"),
        (("b", "c"), "'x # y'", "inside"),
        (("b", "d"), "[1,\n    2]", ""),
        (("e",), "null", ""),
        (("f",), "${a}", ""),
    ]
    assert documented("# of a\na: 1\n")[0][2] == "of a"


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_lists_its_options_and_marks_the_default(group):
    said = help_text("train").splitlines()
    start = next(i for i, line in enumerate(said) if line.startswith(f"  {group} "))
    listed = said[start].split()[1:]
    for line in said[start + 1 :]:
        if not line.startswith(" " * 14):
            break
        listed += line.split()
    assert listed == [f"*{name}" if name == GROUPS[group] else name for name in option_names(group)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_has_its_value_and_its_comment(command):
    said = " ".join(help_text(command).split())
    for path, value, comment in documented((conf_dir() / f"{command}.yaml").read_text()):
        assert comment
        assert " ".join(f"{'.'.join(path)}={value} {comment}".split()) in said


def test_choices_beside_help_show_their_keys_with_the_values_they_would_get():
    said = help_text("train", ["model=resnet", "data=imagefolder", "optim=gd", "optim.lr=0.3"])
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert any(line.startswith("model.depth=18 ") for line in lines)
    assert "model.channels=3 as data.channels" in lines
    assert any(line.startswith("optim.lr=0.3 ") for line in lines)
    assert any(line.startswith("batch_size=full ") for line in lines)


def test_lr_find_has_the_keys_of_a_run_too():
    said = help_text("lr_find")
    assert "  lr_max=1.0 " in said
    assert "  max_device_batch=" in said
    assert "*resnet" in said


def test_extend_lists_no_group_that_it_refuses():
    said = help_text("extend")
    assert "  optim       " in said
    assert "  model       " not in said
    assert "experiment" not in said.partition("Keys, with")[0]
    assert "imgrec extend optim=sgd --help" in said


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_every_command(capsys, command):
    assert cli.main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.isascii()
    assert command in said


@pytest.mark.parametrize("words", [["--version"], ["train", "--version"], ["predict", "runs/n/1", "--version"]])
def test_the_version_is_printed_after_any_command(capsys, words):
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"imgrec {imgrec.__version__}\n"


@pytest.mark.parametrize("example", [f"{command} {example}" for command, found in EXAMPLES.items() for example in found])
def test_examples_compose(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").mkdir()
    command, *words = example.partition(" -- ")[0].split()
    compose_config(command, words)  # what follows -- is a training: tests/test_slurm_script.py


@pytest.mark.parametrize("words", ["train --help", "train -h", "--help train", "-h train", "help train"])
def test_every_form_is_the_same_help(capsys, words):
    assert cli.main([*words.split(), "model=vgg"]) == 0
    assert capsys.readouterr().out == help_text("train", ["model=vgg"]) + "\n"


@pytest.mark.parametrize("words", ["", "help", "--help", "-h"])
def test_without_a_command_all_are_listed(capsys, words):
    assert cli.main(words.split()) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")] == list(cli.COMMANDS)


def test_a_word_that_is_no_key_is_named_below_the_help(capsys):
    assert cli.main(["train", "--help", "zzzzz", "epochs=3", "resnett"]) == 0
    *said, blank, one, other = capsys.readouterr().out.splitlines()
    assert said == help_text("train", ["epochs=3"]).splitlines()
    assert (blank, one.partition(":")[0], other.partition("Type ")[2]) == ("", "'zzzzz'", "imgrec train model=resnet")
    assert cli.main(["help", "trian"]) == 2
    assert "Did you mean train?" in capsys.readouterr().err


def test_it_is_printed_as_it_is(capsys):
    """Without torch: tests/test_start.py."""
    assert cli.main(["train", "--help"]) == 0
    assert capsys.readouterr().out == help_text("train") + "\n"
