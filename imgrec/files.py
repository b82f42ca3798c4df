"""Image files below a folder, and files to write: checked before, and written whole or not at all. Imports no torch."""

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, Generic, NamedTuple, TypeVar

from imgrec.errors import NO_ROOM, ConfigError, DataError

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

# Folders that systems leave, beside those whose names begin with a dot, in lower case: archives and servers of macOS,
# Windows, Linux, Android, Python, and network disks of Synology, QNAP and NetApp (github.com/github/gitignore, Global/*).
SYSTEM_FOLDERS = {
    "__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder",
    "$recycle.bin", "recycler", "system volume information", "found.000", "msocache",
    "lost+found", "lost.dir", "__pycache__", "node_modules", "_gsdata_",
    "@eadir", "@tmp", "@sharebin", "@sharesnap", "@synoresource", "#recycle", "#snapshot",
    "@recycle", "@recently-snapshot", "@transcode", "~snapshot",
}  # fmt: skip
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}  # of file managers, in lower case

Names = TypeVar("Names")
# Called with what is done to images, to how many more of them, and to how many in all (None: not known), for a progress bar.
on_progress: ContextVar[Callable[[str, int, int | None], None]] = ContextVar("on_progress", default=lambda what, count, of: None)


def is_hidden(name: str) -> bool:
    """Whether a folder of this name is a system's, not the user's."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS decomposes those of files, and its archives carry that elsewhere."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def is_directory_name(name: str) -> bool:
    """Whether `name` is one directory's name, so that a path that ends in it stays inside its parent."""
    return name not in ("", ".", "..") and "/" not in name


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


class Listing(NamedTuple, Generic[Names]):
    """What a folder holds itself, without hidden names."""

    images: Names
    folders: tuple[str, ...]  # names, sorted, also of links to folders
    links: frozenset[str]  # those of the names that are links
    ignored: dict[str, int]  # the other files, by their extension
    filled: bool  # whether it holds a file or a link that no system left


def list_folder(folder: str) -> Listing[list[str]]:
    """A link by the name of an image that leads nowhere is an image, which cannot be read.

    DataError for a folder that cannot be listed, and for another link in it that leads to itself.
    """
    images: list[str] = []
    folders: list[str] = []
    links: list[str] = []
    ignored: Counter[str] = Counter()
    filled = False
    with readable_folder(folder), os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if entry.is_symlink():
                links.append(name)
                if file_extension(name) in IMAGE_EXTENSIONS and not os.path.exists(entry.path):
                    images.append(name)
                    continue
            # The kinds of entries are known from the listing: no system call for each file.
            if entry.is_file():
                if (extension := file_extension(name)) in IMAGE_EXTENSIONS:
                    images.append(name)
                    continue
                ignored[extension or "without extension"] += 1
            elif entry.is_dir() and not is_hidden(name):
                folders.append(name)
            filled = filled or not (
                entry.is_dir(follow_symlinks=False) or is_hidden(name) or name.lower() in SYSTEM_FILES
            )  # fmt: skip
    return Listing(images, tuple(sorted(folders)), frozenset(links), ignored, filled or bool(images))


def walk_folders(
    root: str, folder: str, list_all: Callable[[Sequence[str]], Iterable[Listing[Names]]]
) -> Iterator[tuple[str, Listing[Names]]]:
    """ROOT/FOLDER and the folders below it, relative to ROOT, without hidden ones and SYSTEM_FOLDERS.

    Links are followed, except to a folder that contains the link. list_all: the listings of folders, as many as are known at once.
    """
    level: list[tuple[str, tuple[str, ...]]] = [(folder, ())]  # folders, and the folders with the links that led to them
    while level:
        listings = list_all([path for path, _ in level])
        deeper: list[tuple[str, tuple[str, ...]]] = []
        for (parent, via), listing in zip(level, listings, strict=True):
            yield parent, listing
            for name in listing.folders:
                path = f"{parent}/{name}" if parent else name
                if name not in listing.links:
                    deeper.append((path, via))
                elif not _contains_any(os.path.join(root, path), folders := (*via, os.path.join(root, parent))):
                    deeper.append((path, folders))
        level = deeper


def find_images(root: str, folder: str = "", *, ignored: Counter[str] | None = None) -> list[str]:
    """The image files below ROOT/FOLDER at any depth, as `walk_folders` goes: paths relative to ROOT, sorted.

    `ignored` counts the other files by their extension. DataError for a folder that cannot be listed.
    """
    images: list[str] = []
    for parent, listing in walk_folders(root, folder, lambda paths: (list_folder(os.path.join(root, path)) for path in paths)):
        images += [f"{parent}/{name}" for name in listing.images] if parent else listing.images
        if ignored is not None:
            ignored.update(listing.ignored)
    return sorted(images)


@contextmanager
def readable_folder(folder: str) -> Iterator[None]:
    """DataError for an OSError while a folder is listed: with the entry in it that cannot be followed, or the folder itself."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror}. Fix it or remove it.") from error


def _contains_any(folder: str, others: tuple[str, ...]) -> bool:
    top = os.path.join(os.path.realpath(folder), "")
    return any(os.path.join(os.path.realpath(other), "").startswith(top) for other in others)


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

    previous: a name for the previous file, which is replaced without one. After an exception the previous file stays.
    The content is on the disk before the file is renamed: a power failure leaves no empty file.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if previous is not None and path.exists():
        path.replace(previous)
    unfinished.replace(path)


def atomic_write(path: Path, content: bytes | str) -> None:
    """Writes a small file with `atomic_output`."""
    with atomic_output(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_output(path: Path) -> Iterator[BinaryIO]:
    """`atomic_file` for a file of the user's; DataError where it cannot be written."""
    try:
        with atomic_file(path) as file:
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
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{key}={path} cannot be written. Set {key}=FILE in a folder that you can write to.")
    if path.exists() and path.stat().st_size and not overwrite and not ours(path):
        raise ConfigError(f"{key}={path} exists, and imgrec did not write it. Set {key}=ANOTHER, or overwrite=true.")


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
