"""Names of files, and files to write: checked before, and written whole or not at all. Imports no torch."""

import errno
import fcntl
import json
import os
import shlex
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, BinaryIO

from imgrec.errors import NO_ROOM, ConfigError, DataError, nearest, shorten
from imgrec.locks import lock_file

# What is decoded, as PIL calls it, the usual ones first; and by which names it is known to be an image. Not here are formats for
# which PIL would start Ghostscript (EPS) or only knows the header (HDF5, MPEG, WMF), and films.
IMAGE_FORMATS = {
    "JPEG": ".jpg .jpeg .jpe .jfif .mpo",
    "PNG": ".png .apng",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "TIFF": ".tif .tiff",
    "GIF": ".gif",
    "PPM": ".ppm .pgm .pbm .pnm .pfm",
    "AVIF": ".avif .avifs",
    "JPEG2000": ".jp2 .j2k .jpx .jpf .jpc .j2c",
    "QOI": ".qoi",
    "TGA": ".tga .icb .vda .vst",
    "ICO": ".ico",
    "CUR": ".cur",
    "ICNS": ".icns",
    "PSD": ".psd",
    "DDS": ".dds",
    "DIB": ".dib",
    "PCX": ".pcx",
    "DCX": ".dcx",
    "SGI": ".sgi .rgb .rgba .bw",
    "SUN": ".ras",
    "FITS": ".fits .fit",
    "MSP": ".msp",
    "XBM": ".xbm",
    "XPM": ".xpm",
}
FORMAT_OF = {extension: form for form, extensions in IMAGE_FORMATS.items() for extension in extensions.split()}
IMAGE_EXTENSIONS = frozenset(FORMAT_OF)
EXTENSIONS_TEXT = f".jpg, .png, .tif, .webp and {len(IMAGE_EXTENSIONS) - 4} others that PIL reads"  # for errors
LAYOUTS = "Set data.root=FOLDER with train/CLASS/*.jpg, or with CLASS/*.jpg."  # for errors
TABLE_EXTENSIONS = (".csv", ".tsv", ".txt", ".parquet")  # what data=table reads
# How tables of predictions begin: of `predict`, and of a test, whose images may have an index in the split instead of a path.
LEADING_COLUMNS = (["path", "class", "probability"], ["path", "true", "predicted"], ["index", "true", "predicted"])

_MOST_LISTED = 1_000  # names of a folder that one is compared with: 10 us each

# Called with what is done to images, to how many more of them, and to how many in all (None: not known), for a progress bar.
on_progress: ContextVar[Callable[[str, int, int | None], None]] = ContextVar("on_progress", default=lambda what, count, of: None)


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS decomposes those of files, and its archives carry that elsewhere."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_directory_name(name: str) -> bool:
    """Whether `name` is one directory's name, so that a path that ends in it stays inside its parent."""
    return name not in ("", ".", "..") and "/" not in name


def resolved(path: str | Path) -> Path:
    """The absolute path without links; where they are a loop as far as it goes: `Path.resolve` raises RuntimeError in Python 3.11."""
    return Path(os.path.realpath(path))


def nearest_path(path: str | Path, *, folder: bool = False) -> str | None:
    """The path that is most like one that does not exist, in each of its parts, if any is. folder: a folder is wanted."""
    if os.path.exists(path):
        return None
    parts = Path(path).parts
    here = Path()
    for number, part in enumerate(parts, 1):
        near = part if os.path.exists(here / part) else _near_name(here, part, folder=folder or number < len(parts))
        if near is None:
            return None
        here /= near
    return str(here) if os.path.isdir(here) or not folder else None


def _near_name(parent: Path, name: str, *, folder: bool) -> str | None:
    with suppress(OSError), os.scandir(parent) as entries:
        return nearest(name, [entry.name for entry in islice(entries, _MOST_LISTED) if entry.is_dir() or not folder])
    return None


def did_you_mean_path(path: str | Path, *, folder: bool = False) -> str:
    """' Did you mean photos/cats?' or nothing, as `did_you_mean`."""
    found = nearest_path(path, folder=folder)
    return "" if found is None else f" Did you mean {shlex.quote(found)}?"


def is_utf8(name: str) -> bool:
    """Whether the bytes of a file's name, which Python gave it as, are UTF-8."""
    return os.fsencode(name) == name.encode(errors="replace")


def as_utf8(text: str) -> str:
    """A text with '?' for the bytes of a file's name that are no UTF-8, as Parquet, HTML and Markdown have it."""
    return text.encode(errors="replace").decode()


def utf8_json(value: Any, indent: int | None = None) -> str:
    """JSON with letters as they are; `as_utf8` as names of files may be in it."""
    return as_utf8(json.dumps(value, indent=indent, ensure_ascii=False))


def file_extension(name: str) -> str:
    """'.jpg' of 'a.JPG', or nothing; os.path.splitext takes three times as long."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of a full disk in the block names `path` where it names no file, as that of a write does not."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            error.filename = error.filename or str(path)
        raise


@contextmanager
def atomic_file(path: Path, *, previous: Path | None = None) -> Iterator[BinaryIO]:
    """A file open for writing that becomes `path` when the block ends: a reader sees all of it or the previous file.

    previous: a name for the previous file, which is replaced without one. After an exception, also one that a signal raises at
    any moment, the previous file stays, and nothing beside it.
    The content is on the disk before the file is renamed: a power failure leaves no empty file.
    """
    unfinished, is_new = _unfinished(path, 0), False
    file: BinaryIO | None = None
    try:
        for unfinished in map(partial(_unfinished, path), count()):
            is_new = not os.path.lexists(unfinished)
            create = os.O_CREAT | (os.O_EXCL if is_new else 0)
            with suppress(FileExistsError):  # another process was faster
                file = os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_NOFOLLOW | create, 0o666), "wb")
                if _is_ours(file, unfinished, is_new):
                    break
                file.close()
        assert file is not None
        file.truncate()
        yield file
        file.flush()
        os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        unfinished.replace(path)
    except BaseException:
        _remove_unfinished(unfinished, file, is_new)
        raise
    finally:  # the lock is kept until the name is free, as another process may take it then
        if file is not None:
            file.close()


def _is_ours(file: BinaryIO, unfinished: Path, is_new: bool) -> bool:
    """Whether no other process writes a file of this name, which stays so: a new one, or what a killed process left.

    Where the file system has no locks, only a new one.
    """
    with suppress(BlockingIOError, FileNotFoundError):
        is_locked = lock_file(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return (is_locked or is_new) and os.path.samestat(os.fstat(file.fileno()), os.stat(unfinished))  # else it was renamed
    return False


def _remove_unfinished(unfinished: Path, file: BinaryIO | None, is_new: bool) -> None:
    with suppress(OSError), ExitStack() as opened:
        if file is None or file.closed:  # it may have been made a moment ago
            file, is_new = opened.enter_context(open(os.open(unfinished, os.O_RDONLY | os.O_NOFOLLOW), "rb")), False
        if _is_ours(file, unfinished, is_new):
            unfinished.unlink()


def _unfinished(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}{f'.{number}' if number else ''}.unfinished")


def atomic_write(path: Path, content: bytes | str) -> None:
    """Writes a small file with `atomic_output`."""
    with atomic_output(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Files that belong together: none replaces a file before all are written."""
    with ExitStack() as files:
        for path, content in contents.items():
            file = files.enter_context(atomic_output(path))
            file.write(content)
            file.flush()


@contextmanager
def atomic_output(path: Path) -> Iterator[BinaryIO]:
    """`atomic_file` for a file of the user's; a link stays one, to the new file. DataError where it cannot be written."""
    try:
        with atomic_file(resolved(path)) as file:
            yield file
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}. Free disk space, or choose another path.") from error


def check_output(key: str, path: Path, suffixes: Sequence[str], *, ours: Callable[[Path], bool], overwrite: bool) -> None:
    """ConfigError unless `path` can be written: a known suffix, in a folder that can be made, and no file there that imgrec did not write."""
    if path.suffix not in suffixes:
        raise ConfigError(
            f"{key}={path}: the name must end in {' or '.join(suffixes)}. Set {key}={path.with_suffix(suffixes[0])}."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{key}={path}: its folder cannot be made: {error.strerror}. Set {key}=FILE in another folder."
        ) from error
    target = resolved(path)
    _check_length(key, path, target)
    if target.is_symlink() or (target.exists() and not target.is_file()):  # a loop of links; a folder, a pipe
        raise ConfigError(f"{key}={path} is no regular file. Set {key}=FILE, which is written or replaced.")
    if not (os.access(target.parent, os.W_OK) and (os.access(target, os.W_OK) or not target.exists())):
        raise ConfigError(f"{key}={path} cannot be written. Set {key}=FILE in a folder that you can write to.")
    if target.exists() and not overwrite and not ours(target):
        raise ConfigError(f"{key}={path} exists, and imgrec did not write it. Set {key}=ANOTHER, or overwrite=true.")


def _check_length(key: str, path: Path, target: Path) -> None:
    """ConfigError where the file system has no room for the name of `target`, or of `atomic_file` beside it."""
    try:
        os.lstat(_unfinished(target, 1))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ConfigError(f"{key}={shorten(str(path))}: the name is too long. Set {key}=FILE with a shorter one.") from error


def first_bytes(path: Path) -> bytes:
    """The first 256 bytes of a file, by which `check_output` may know what imgrec wrote."""
    with path.open("rb") as file:
        return file.read(256)


def begins_with(start: bytes) -> Callable[[Path], bool]:
    """For `check_output`: whether a file begins as those that imgrec writes."""
    return lambda path: first_bytes(path).startswith(start)


def is_our_png(path: Path) -> bool:
    """Whether a PNG names imgrec as the software that wrote it."""
    return b"Software\0imgrec" in first_bytes(path)


def is_our_table(path: Path) -> bool:
    """Whether a .csv, .json or .parquet begins as a table of predictions does."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with path.open("rb") as file:  # pyarrow takes no path that is no UTF-8
                names: list[str] = pq.read_schema(file).names
        except (pa.ArrowInvalid, OSError):
            return False
        return names[:3] in LEADING_COLUMNS
    starts = [",".join(names) + "," if path.suffix == ".csv" else f'[\n{{"{names[0]}": ' for names in LEADING_COLUMNS]
    return first_bytes(path).startswith(tuple(start.encode() for start in starts))


def numbered_paths(parent: Path, prefix: str = "") -> list[tuple[int, Path]]:
    """What lies in a folder under `prefix` and a number, the smallest first."""
    named = ((path.name.removeprefix(prefix), path) for path in parent.glob(f"{prefix}*"))
    return sorted((int(number), path) for number, path in named if number.isdecimal())
