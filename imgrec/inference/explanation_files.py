"""The files that `imgrec explain` writes, each checked before anything is read. Imports no torch."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imgrec.errors import ConfigError
from imgrec.files import check_output, is_directory_name, is_our_png, is_our_table, resolved
from imgrec.paths import EXPLAINED, EXPLAINED_FILE


class OutputFiles(NamedTuple):
    """What is written."""

    table: Path
    sheet: Path
    pictures: dict[str, Path]  # of each image, by its name


def explanation_files(out: str | None, names: Sequence[str], *, run: Path | None, overwrite: bool) -> OutputFiles:
    """Pictures are numbered, as files of several folders may have one name. run: whose errors are explained.

    ConfigError for a file that cannot be written, or that imgrec did not write, and for the folder of what a report shows.
    """
    own = None if run is None else run / EXPLAINED
    folder, digits = Path(out) if out is not None else own or Path(EXPLAINED), len(str(len(names)))
    if not overwrite and (folder / EXPLAINED_FILE).exists() and (own is None or resolved(folder) != resolved(own)):
        raise ConfigError(
            f"out={folder} has the maps that {folder.parent / 'report.html'} shows. Set out=ANOTHER, or overwrite=true to replace them."
        )
    pictures = {name: folder / f"{number:0{digits}d}_{Path(name).stem[:48]}.png" for number, name in enumerate(names, 1)}
    files = OutputFiles(folder / "explain.csv", folder / "explain.png", pictures)
    check_output("out", files.table, (".csv",), ours=is_our_table, overwrite=overwrite)
    for picture in (files.sheet, *pictures.values()):
        check_output("out", picture, (".png",), ours=is_our_png, overwrite=overwrite)
    return files


def earlier_pictures(table: Path) -> set[Path]:
    """Those that the table of an earlier call names."""
    if not table.is_file() or not is_our_table(table):
        return set()
    with table.open(newline="", errors="surrogateescape") as file:
        names = {row["picture"] for row in csv.DictReader(file) if row.get("picture")}
    paths = (table.with_name(name) for name in names if is_directory_name(name))
    return {path for path in paths if path.is_file() and is_our_png(path)}
