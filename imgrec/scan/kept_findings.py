"""What a check found in a folder, kept until the folder changes: then a check says it again, without torch and the search for copies."""

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from imgrec.analysis.image_faults import FaultKind
from imgrec.config.schema import Node
from imgrec.data.cache import cache_folder, read_summed, write_summed
from imgrec.data.file_index import SETTLED_NS, FileIndex
from imgrec.errors import DataError
from imgrec.scan.scan_cache import file_stamps

TARGET = "imgrec.data.datasets.ImageFolder"  # whose images lie below its root, and are chosen by code of imgrec alone


@dataclass(frozen=True)
class KeptFinding:
    """A kind, as `print_findings` shows it."""

    kind: FaultKind
    count: int
    sentences: list[str]


class KeptFindings(NamedTuple):
    """What a check said and wrote."""

    summary: str
    content: str  # of the JSON
    page: str
    known: tuple[str, str]  # of `remember_faults`: the name of a file beside this one, and its content

    def listed(self) -> list[KeptFinding]:
        """The findings, from the JSON."""
        return [
            KeptFinding(FaultKind(entry["kind"], entry["is_fault"], entry["what"], entry["advice"]), entry["count"], entry["examples"])
            for entry in json.loads(self.content)["findings"]
        ]  # fmt: skip


def findings_file(data: Node) -> Path | None:
    """A file of the cache for what is found in a folder as it is now: named by all that a check depends on.

    These are the keys of the data, the code, the names of folders and images below the root, and the sizes and times of change
    of the images. None where the data is no folder, or a file may change in the next moment without another time.
    """
    folder = cache_folder()
    if folder is None or data["_target_"] != TARGET or data["root"] is None:
        return None
    try:
        settings, state = _settings(data), _folder_state(data["root"])
    except (DataError, OSError):  # a folder or a list cannot be read: where the splits need it, they say so
        return None
    return None if state is None else folder / f"findings-{settings}-{state}"


def read_findings(file: Path) -> KeptFindings | None:
    """None where there is no such file, or it is damaged. What a training knows of the folder is written again."""
    try:
        kept = KeptFindings(*json.loads(read_summed(file)))
        name, content = kept.known
        beside = file.with_name(name)
        os.utime(file)  # it is not the oldest
    except (OSError, ValueError, TypeError):
        return None
    write_summed(beside, content.encode())
    return kept


def keep_findings(file: Path, kept: KeptFindings) -> None:
    """Instead of those of the same folder in another state."""
    write_summed(file, json.dumps(kept).encode())
    for other in file.parent.glob(f"{file.name.rpartition('-')[0]}-*"):
        if other != file:
            other.unlink(missing_ok=True)


def _settings(data: Node) -> str:
    root, skip_list = data["root"], data["skip_list"]
    listed = b"" if skip_list is None else Path(skip_list).read_bytes()
    package = Path(__file__).parents[1]
    code = [(file.name, status.st_size, status.st_mtime_ns) for file in sorted(package.rglob("*.py")) for status in [file.stat()]]
    return _digest(os.path.realpath(root), sorted(data.items()), listed, code)


def _folder_state(root: str) -> str | None:
    files = FileIndex(root)
    names = files.find()
    files.keep()
    stamps = file_stamps(root, names)
    if not len(names) or stamps[:, 1:].max() > time.time_ns() - SETTLED_NS:
        return None
    return _digest(files.outline(), names.itemsize, names.tobytes(), stamps.tobytes())


def _digest(*parts: object) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else repr(part).encode(errors="surrogateescape"))
    return digest.hexdigest()
