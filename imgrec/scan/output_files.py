"""The files that a check writes, each checked before anything is read. Imports no torch."""

from pathlib import Path
from typing import Literal, NamedTuple

from imgrec.config.plain_data import read_mapping
from imgrec.errors import ConfigError, DataError
from imgrec.files import begins_with, check_output, resolved
from imgrec.html_page import page_start

CHECK_MARK = b'{\n "imgrec": "check"'  # how our JSON begins
SPLITS_MARK = b"path,label,split,copy_of\n"  # how our table of splits begins


class Files(NamedTuple):
    """The files that a check writes."""

    out: Path
    page: Path
    written: Path | None  # the skip list, or the table of splits
    kept: Path | None = None  # in the cache, for the next check


def checked_outputs(out: Path, name: str, root: str | None, write: Literal["skip", "splits"] | None, *, overwrite: bool) -> Files:
    """ConfigError for a file that cannot be written, that imgrec did not write, or that has the check of other data.

    name: of the data that is checked, as the JSON has it in "root"; root: its data.root.
    """
    if root is not None and resolved(out).is_relative_to(resolved(root)):
        raise ConfigError(f"out={out} is in data.root={root}, where check writes nothing. Set out=FILE.json in another folder.")
    check_output("out", out, (".json",), ours=begins_with(CHECK_MARK), overwrite=overwrite)
    other = None if overwrite else _checked_before(out)
    if other is not None and resolved(other) != resolved(name):
        raise ConfigError(f"out={out} has the check of {other}. Set out=ANOTHER.json, or overwrite=true to replace it.")
    page = out.with_suffix(".html")
    check_output("out", page, (".html",), ours=begins_with(page_start("check").encode()), overwrite=overwrite)
    if write is None:
        return Files(out, page, None)
    if write == "splits":
        splits = out.with_suffix(".splits.csv")
        check_output("out", splits, (".csv",), ours=begins_with(SPLITS_MARK), overwrite=overwrite)
        return Files(out, page, splits)
    from imgrec.data.skip_list import LIST_MARK

    skip_list = out.with_suffix(".skip.txt")
    check_output("out", skip_list, (".txt",), ours=begins_with(LIST_MARK), overwrite=overwrite)
    return Files(out, page, skip_list)


def _checked_before(out: Path) -> str | None:
    """The data of the check that a file has; None where there is no file, or it was cut."""
    if not out.is_file():
        return None
    try:
        root = str(read_mapping(out, {"root": str}, fix="")["root"])
    except DataError:
        return None
    return None if "\0" in root else root  # no path
