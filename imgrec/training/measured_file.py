"""The checkpoint that the figures of a run are of, and whether it was changed since. Imports no torch."""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

MEASURED_FILE = "measured_file"  # in result.json


def measured_file(run: Path, name: str) -> dict[str, str]:
    """The entry of result.json for a checkpoint below a run directory."""
    return {"file": name, "records": records_hash(run / name)}


def records_hash(file: Path) -> str:
    """SHA-256 of the names, sizes and checksums of the records of a checkpoint, a ZIP file, of which only the list is read.

    The name of the folder in the ZIP, which is that of the file as it was saved, is left out.
    """
    with zipfile.ZipFile(file) as records:
        listed = [f"{each.filename.partition('/')[2]} {each.file_size} {each.CRC}\n" for each in records.infolist()]
    return hashlib.sha256("".join(listed).encode()).hexdigest()


def change_sentence(run: Path, result: Mapping[str, Any] | None) -> str | None:
    """That the checkpoint was changed since the figures were measured, and what to type; None of one that was not, and of one that is gone.

    Also None of a run of a version that did not store this.
    """
    entry = (result or {}).get(MEASURED_FILE) or {}
    name, stored = entry.get("file"), entry.get("records")
    if not (isinstance(name, str) and isinstance(stored, str) and (run / name).is_file()):
        return None
    try:
        is_same = records_hash(run / name) == stored
    except Exception:  # zipfile has many kinds, for what is no checkpoint any more
        is_same = False
    if is_same:
        return None
    return (
        f"{run / name} was changed since it was measured, so these figures may not be those of the network in it. "
        f"Put the file back, or type imgrec evaluate {quote(str(run))} for those of the file as it is."
    )


def measured_weights(result: Mapping[str, Any] | None) -> str | None:
    """The hash of the weights that the figures of a run are of: those of its test, else those that it ended with."""
    weights = (result or {}).get("weights") or {}
    entries = (weights.get(name) for name in ("test", "best", "last"))
    return next((entry.get("sha256") for entry in entries if isinstance(entry, dict)), None)
