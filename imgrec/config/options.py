"""The path of conf/, its config groups and their options, and those of the user's own folders."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from imgrec.errors import ConfigError


def conf_dir() -> Path:
    """The shipped yaml: conf/ of a checkout, or imgrec/conf of an installed wheel."""
    package = Path(__file__).parent.parent
    for conf in (package / "conf", package.parent / "conf"):
        if (conf / "train.yaml").is_file():
            return conf
    raise ConfigError(f"no conf/train.yaml beside {package}: the installation is incomplete. Install imgrec again.")


def option_names(group: str, search: Sequence[Path] = ()) -> list[str]:
    """The options of a config group: the yaml files in its folder, of the shipped conf/ and of the user's own."""
    return sorted({file.stem for root in (conf_dir(), *search) for file in (root / group).glob("*.yaml")})


def group_names(search: Sequence[Path] = ()) -> list[str]:
    """The config groups: the folders in conf/ and in the user's own."""
    return sorted({file.parent.name for root in (conf_dir(), *search) for file in root.glob("*/*.yaml")})


@cache
def shipped_targets() -> frozenset[str]:
    """Every `_target_` in the shipped yaml."""
    files = conf_dir().rglob("*.yaml")
    return frozenset(target for file in files for target in re.findall(r"^ *_target_: *(\S+)", file.read_text(), re.MULTILINE))
