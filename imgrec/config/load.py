"""The config of a training, in which the data has the preprocessing that the pretrained weights expect."""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from imgrec.config.compose import compose_config
from imgrec.config.instantiate import locate
from imgrec.config.overrides import Override
from imgrec.config.python_settings import Settings, read_settings
from imgrec.config.schema import Node, RunConfig, run_config
from imgrec.config.start_checks import check_start
from imgrec.errors import ConfigError, ImgrecError, did_you_mean

# (weights, model) -> the keys of data, with the values that the weights expect. It takes the seconds of importing torch.
EXPECTED_INPUT = "imgrec.training.transfer.expected_input"


def load_config(
    command: str, settings: Settings = None, /, config_dir: str | os.PathLike[str] | None = None, **keys: Any
) -> RunConfig:
    """Compose conf/train.yaml with overrides into a checked RunConfig: load("train", ["data=mnist"], epochs=3, optim={"lr": 0.1}).

    settings: the words of a command line, or a dictionary; keys: more of them, as keywords. command: "train", as other
    commands have no RunConfig. Raises ConfigError for all that can be checked by the yaml alone; `check_signatures` does
    the rest after the import of torch.
    """
    if command != "train":
        raise ConfigError(
            f"{command!r}: only a training has a RunConfig.{did_you_mean(command, ['train'])} Type imgrec.config.load('train', ...)."
        )
    if not isinstance(config_dir, str | os.PathLike | None):
        raise ConfigError(f"config_dir={config_dir}: expected the path of a folder. Type config_dir='FOLDER'.")
    folder = None if config_dir is None else os.fspath(config_dir)
    return run_config(compose_run(command, read_settings(settings, keys), folder))


def compose_run(command: str, words: Sequence[str | Override], config_dir: str | None = None) -> Node:
    """The tree of a command that trains. With weights ${of_weights:KEY,DEFAULT} in it are theirs, where the channels are.

    They are not looked at for a start that is refused anyway, which `check_start` says before torch is imported.
    """
    tree = compose_config(command, words, config_dir)
    run = run_config(tree)
    if missing := [key for key in tree if tree[key] is None and not hasattr(run, key)]:  # lr_find's and benchmark's own keys
        raise ConfigError(f"{missing[0]}=null: expected a value. Leave {missing[0]} out for its default.")
    if run.weights is None:
        return tree
    expected: Node = {}
    with suppress(ImgrecError):  # raised again where the run starts
        check_start(run)
        expected = locate(EXPECTED_INPUT)(run.weights, run.model)
    expected = {key: value for key, value in expected.items() if not isinstance(value, list) or len(value) == run.data.channels}
    return compose_config(command, words, config_dir, of_weights=expected) if expected else tree
