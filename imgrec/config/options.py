"""The path of conf/, its config groups and their options, and those of the user's own folders."""

import re
from functools import cache
from pathlib import Path

from imgrec.errors import ConfigError
from imgrec.files import did_you_mean_path, resolved


def shipped_file(name: str) -> Path:
    """A file that is shipped beside the package: conf/train.yaml of a checkout, imgrec/conf/train.yaml of an installed wheel."""
    package = Path(__file__).parent.parent
    for file in (package / name, package.parent / name):
        if file.is_file():
            return file
    raise ConfigError(f"no {name} beside {package}: the installation is incomplete. Install imgrec again.")


def conf_dir() -> Path:
    """The folder of the shipped yaml."""
    return shipped_file("conf/train.yaml").parent


def conf_dirs(config_dir: str | None) -> list[Path]:
    """The user's own folder of yaml (--config-dir), whose options come first, and the shipped one."""
    if config_dir and not Path(config_dir).is_dir():
        raise ConfigError(
            f"--config-dir {config_dir}: there is no such folder.{did_you_mean_path(config_dir, folder=True)} Name the folder with your model/, data/, experiment/ yaml."
        )
    return [*([resolved(config_dir)] if config_dir else []), conf_dir()]


def option_names(group: str, config_dir: str | None = None) -> list[str]:
    """The options of a config group: the yaml files in its folders."""
    return sorted({file.stem for root in conf_dirs(config_dir) for file in (root / group).glob("*.yaml")})


def group_names(config_dir: str | None = None) -> list[str]:
    """The config groups: the folders in conf/ and in the user's own."""
    return sorted({file.parent.name for root in conf_dirs(config_dir) for file in root.glob("*/*.yaml")})


@cache
def shipped_targets(group: str = "*") -> frozenset[str]:
    """Every `_target_` in the shipped yaml of a config group, or of all."""
    files = conf_dir().glob(f"{group}/*.yaml")
    return frozenset(target for file in files for target in re.findall(r"^ *_target_: *(\S+)", file.read_text(), re.MULTILINE))
