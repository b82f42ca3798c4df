"""The .pt2 and .safetensors files of an export: whether imgrec wrote one that stands there. Imports no torch."""

import json
import zipfile
from pathlib import Path

from imgrec.files import begins_with, check_output

PROGRAM_PACKAGES: tuple[str, ...] = ()  # torch is enough
WEIGHTS_PACKAGES = ("safetensors",)
PROGRAM_FACTS = "facts.json"  # among the extra files of a program
JSON_MARK = b'{\n "imgrec": 1,\n'  # how our JSON begins
_MOST_HEADER = 100_000_000  # bytes; as safetensors itself allows


def check_program_output(out: Path, overwrite: bool) -> None:
    """ConfigError unless a .pt2 file can be written."""
    check_output("out", out, (".pt2",), ours=_is_our_program, overwrite=overwrite)


def check_weights_output(out: Path, overwrite: bool) -> None:
    """ConfigError unless both files can be written."""
    check_output("out", out, (".safetensors",), ours=_are_our_weights, overwrite=overwrite)
    check_output("out", json_beside(out), (".json",), ours=begins_with(JSON_MARK), overwrite=overwrite)


def json_beside(out: Path) -> Path:
    return out.with_suffix(".json")


def _is_our_program(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as records:
            return any(name.endswith(f"/extra/{PROGRAM_FACTS}") for name in records.namelist())
    except Exception:  # zipfile has many kinds, for what is no whole archive
        return False


def _are_our_weights(path: Path) -> bool:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, _MOST_HEADER)))
        except ValueError:
            return False
    return isinstance(header, dict) and "imgrec" in header.get("__metadata__", ())
