"""An ONNX file with its metadata and a hash of all its bytes, and the script beside it. Imports no torch."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgrec.files import as_utf8, begins_with, check_output, utf8_json, write_together

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
SEAL_START = b"rJ\n\x06sha256\x12@"  # how the entry with the hash begins, the last SEAL_BYTES of a file
SEAL_BYTES = len(SEAL_START) + 64
VERIFY_SCRIPT = Path(__file__).with_name("verify_model.py")  # needs nothing of imgrec, and is copied beside each file


def check_onnx_output(out: Path, overwrite: bool) -> None:
    """ConfigError unless both files can be written."""
    check_output("out", out, (".onnx",), ours=is_sealed, overwrite=overwrite)
    start = VERIFY_SCRIPT.read_bytes()[:60]
    check_output("out", script_beside(out), (".py",), ours=begins_with(start), overwrite=overwrite)


def write_sealed(out: Path, graph: bytes, facts: Mapping[str, Any]) -> None:
    """The file, and the script beside it. DataError where the disk is full."""
    write_together({out: sealed(graph, facts), script_beside(out): VERIFY_SCRIPT.read_bytes()})


def script_beside(out: Path) -> Path:
    return out.with_name(f"verify_{out.stem}.py")


def sealed(graph: bytes, facts: Mapping[str, Any]) -> bytes:
    """The graph, each fact in metadata_props (texts as they are, others as JSON; all in UTF-8), and a hash of all that."""
    texts = {key: as_utf8(value) if isinstance(value, str) else utf8_json(value) for key, value in facts.items()}
    content = graph + _metadata(texts)  # Protocol Buffers join what is appended
    return content + _metadata({"sha256": hashlib.sha256(content).hexdigest()})


def _metadata(texts: Mapping[str, str]) -> bytes:
    import onnx

    entries = [onnx.StringStringEntryProto(key=key, value=value) for key, value in texts.items()]
    content: bytes = onnx.ModelProto(metadata_props=entries).SerializeToString()
    return content


def is_sealed(path: Path) -> bool:
    """Whether a file ends as those that `write_sealed` wrote."""
    with path.open("rb") as file:
        file.seek(-min(SEAL_BYTES, path.stat().st_size), os.SEEK_END)
        return file.read().startswith(SEAL_START)
