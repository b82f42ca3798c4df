"""Keys that name one of several values are checked before torch is imported, by the annotations that the code behind them has."""

import typing

import pytest
import yaml
from error_parts import raises_error

from imgrec.config.compose import compose_config
from imgrec.config.instantiate import locate, parameter_types
from imgrec.config.named_values import named_types
from imgrec.config.options import conf_dir
from imgrec.config.schema import run_types
from imgrec.errors import ConfigError

GROUPS = ("data", "augment", "loss", "model", "optim", "scheduler")


@pytest.mark.parametrize("group", GROUPS)
def test_the_annotations_of_the_code_are_known_before_it_is_imported(group: str) -> None:
    composed = compose_config("train", [])
    for file in (conf_dir() / group).glob("*.yaml"):
        node = yaml.safe_load(file.read_text())
        if "_target_" not in node:
            continue
        known = named_types({group: node}) | run_types(composed)
        for key, hint in parameter_types(locate(node["_target_"])).items():
            if key in node and typing.Literal in map(typing.get_origin, (hint, *typing.get_args(hint))):
                assert known.get(f"{group}.{key}") == hint, f"{file.name}: {key}"


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (
            ["data=imagefolder", "data.decoder=pill"],
            "data.decoder=pill: expected auto, simplejpeg, torchvision, torchcodec or pil. Did you mean pil?",
        ),
        (["data=imagefolder", "data.cache=disk"], "data.cache=disk: expected none or ram. The default is none."),
        (["model=vgg", "model.depth=18"], "model.depth=18: expected 11, 13, 16 or 19."),
        (["model=simple_cnn", "model.padding=[full]"], "model.padding=[full]: expected a list of valid or same."),
        (["loss.class_weights=sqrt"], "loss.class_weights=sqrt: expected none or balanced."),
    ],
)
def test_another_value_is_refused_by_the_config(overrides: list[str], error: str) -> None:
    with raises_error(ConfigError, error):
        compose_config("train", overrides)


def test_a_network_of_the_users_own_may_take_other_values() -> None:
    model = {"_target_": "mypackage.Net", "depth": 7, "stem": "none"}
    assert not named_types({"model": model})
