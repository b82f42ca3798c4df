"""The files that a command line names: images and the checkpoint. Imports no torch, so that a wrong path is refused at once."""

import codecs
import csv
import glob
import os
import shlex
import warnings
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from imgrec.errors import CheckpointError, DamagedError, DataError, first_names, plural
from imgrec.files import EXTENSIONS_TEXT, IMAGE_EXTENSIONS, IMAGE_FORMATS, did_you_mean_path, file_extension
from imgrec.image_folders import find_images

CHECKPOINTS = "checkpoints"  # their folder in a run directory
EXPLAINED = "explained"  # the folder of `imgrec explain`, in a run directory or in the current one
EXPLAINED_FILE = "explain.json"  # there, of the images that the report of the run shows
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"  # the two checkpoints of a run that it can be resumed from
BEST = "best.ckpt"  # the checkpoint that is tested; without the state of an optimizer, so nothing is resumed from it
CHECKPOINT = "a checkpoint"
EXPORTED = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors"}  # what imgrec export writes, by format
NAME_RUN = "Name a checkpoint (.ckpt) or a run directory such as runs/NAME/ID."
_MOST_LISTED = 10_000  # names, to find runs: a folder of images may have millions


def expand_files(paths: str | Sequence[str], key: str = "files") -> list[str]:
    """The files of paths, folders and patterns in their order, each once; the image files of a folder and the matches of a pattern are sorted.

    key: of the command line, for errors. DataError for a name that does not exist, a pattern that matches nothing, a folder without images,
    no path at all, and where none of the files is an image.
    """
    paths = [paths] if isinstance(paths, str) else [str(path) for path in paths]
    if not paths:
        raise DataError(f"{key}=[]: the list has no file. Set {key}= to an image, a folder or a pattern.")
    files = list(dict.fromkeys(file for path in paths for file in _expand(path, key)))
    if not any(map(_may_be_image, files)):
        what = "no image" if len(files) == 1 else f"and none of {len(files):,} files is an image"
        raise DataError(
            f"{key}={files[0]} is {file_kind(Path(files[0]))}, {what}. Set {key}= to an image, a folder or a pattern."
        )
    return files


def _may_be_image(file: str) -> bool:
    """Whether it has the name of an image, or begins as PIL knows it; also of what cannot be opened, which is said later."""
    if file_extension(file) in IMAGE_EXTENSIONS or not os.path.isfile(file):  # a pipe would be waited for
        return True
    from PIL import Image, UnidentifiedImageError  # takes a tenth of a second

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(file, formats=tuple(IMAGE_FORMATS)).close()
    except UnidentifiedImageError:
        return False
    except Exception:  # of PIL's parsers: it began as an image does
        return True
    return True


def _expand(path: str, key: str) -> list[str]:
    if os.path.isdir(path):
        if images := _images_in(path):
            return images
        raise DataError(
            f"{key}={path}: this folder has no images (names that end in {EXTENSIONS_TEXT}). Set {key}=FOLDER with images."
        )
    if os.path.isfile(path):
        return [path]
    if os.path.exists(path):
        raise DataError(f"{key}={path}: it is no regular file. Set {key}= to an image, a folder or a pattern.")
    if not glob.has_magic(path):
        hint = f"For several files type {key}=[{path}]." if "," in path else f"Set {key}= to an image, a folder or a pattern."
        raise DataError(f"{key}={path}: there is no such file or folder.{did_you_mean_path(path)} {hint}")
    matches = sorted(glob.glob(path, recursive=True))
    # A pattern that matches folders alone means the images in them; `**` matches both, and then the files are meant.
    files = [match for match in matches if not os.path.isdir(match)] or [
        file for folder in matches for file in _images_in(folder)
    ]
    if not files:
        raise DataError(f"{key}={path}: no file matches this pattern. Put it in quotes, so that the shell does not expand it.")
    return files


def _images_in(folder: str) -> list[str]:
    return [os.path.join(folder, name) for name in find_images(folder)]


def find_checkpoint(path: str | Path, *, fix: str | None = None, allowed: str = NAME_RUN) -> Path:
    """The checkpoint file that a path means: the file itself, or the best (else the last) of a run directory.

    CheckpointError for a path that is neither, and DamagedError for a file that begins as no checkpoint does. Their last
    sentence is `fix`, else names what is near, else is `allowed`.
    """
    file = find_file(path, allowed)
    if file.suffix in EXPORTED.values():
        serve = f"Type imgrec serve {shlex.quote(str(file))}, or name" if file.suffix == ".onnx" else "Name"
        raise CheckpointError(
            f"{file}: it is an exported file; a checkpoint is needed. {serve} the run that it was exported from."
        )
    try:
        kind = file_kind(file)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}. {allowed if fix is None else fix}".rstrip()) from error
    if kind != CHECKPOINT:
        raise DamagedError(
            f"{file}: it is {kind}, not a checkpoint. {name_another(file, allowed) if fix is None else fix}".rstrip()
        )
    return file


def name_another(file: Path, allowed: str = NAME_RUN) -> str:
    """What to type instead of a file that is no checkpoint: one beside it, else a run."""
    names = (BEST, LAST, PREVIOUS)
    others = [file.with_name(name) for name in names if name != file.name]
    if (other := next(filter(Path.is_file, others), None)) is not None:
        return f"Name another, such as {other}."
    return allowed if file.name in names else name_run(file, allowed)  # the run of a checkpoint means that checkpoint


def find_file(path: str | Path, allowed: str = NAME_RUN) -> Path:
    """`find_checkpoint`, or any other file."""
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder.{did_you_mean_path(path)} {allowed}")
    if not path.is_dir():
        raise CheckpointError(f"{path}: it is a device, a pipe or a socket. {allowed}")
    for name in (f"{CHECKPOINTS}/{BEST}", f"{CHECKPOINTS}/{LAST}", BEST, LAST):
        if (path / name).is_file():
            return path / name
    if (best := _best_of_sweep(path)) is not None:
        raise CheckpointError(
            f"{path}: this folder holds the runs of a sweep. Name one of them, such as its best, {path / best}."
        )
    raise CheckpointError(f"{path}: no {CHECKPOINTS}/{BEST} or {CHECKPOINTS}/{LAST} in this folder. {name_run(path, allowed)}")


def _best_of_sweep(path: Path) -> str | None:
    """The folder of the run on the first row of a sweep's table; None where there is none."""
    try:
        with (path / "sweep.csv").open(newline="") as file:
            first = next(csv.DictReader(file), {})
    except (OSError, ValueError, csv.Error):
        return None
    return Path(first["folder"]).name if first.get("rank") == "1" and first.get("folder") else None


def name_run(path: Path, allowed: str) -> str:
    """What to type instead of a file in a run, or of a folder of runs; for a path that has nothing to do with one `allowed`."""
    if inside := next(filter(_is_run, path.parents), None):
        return f"Type {shlex.quote(str(inside))}, the run that it belongs to."
    if not (runs := newest_runs(path)):
        return allowed
    newest = f", the newest first: {first_names(runs, 3)}" if len(runs) > 1 else ""
    return f"It holds {plural(len(runs), 'run')}{newest}. Type {shlex.quote(str(runs[0]))} instead."


def newest_runs(folder: Path) -> list[Path]:
    """The run directories below a folder, also those of sweeps; what was saved last comes first."""
    found: list[Path] = []
    folders, left = [folder], _MOST_LISTED
    for _ in range(3):  # NAME/sweep_1/ID
        deeper: list[Path] = []
        for parent in folders:
            with suppress(OSError), os.scandir(parent) as entries:
                for entry in islice(entries, left):
                    left -= 1
                    if entry.is_dir():
                        (found if _is_run(Path(entry.path)) else deeper).append(Path(entry.path))
        folders = deeper
    return sorted(found, key=lambda run: (-_saved_at(run), run))


def _is_run(folder: Path) -> bool:
    return os.path.isfile(folder / "config.yaml") and any(os.path.exists(folder / name) for name in (CHECKPOINTS, "metrics.csv"))


def _saved_at(run: Path) -> float:
    """The time of the last save, in seconds; of a run without one that of its start."""
    saves = run / CHECKPOINTS
    return (saves if saves.is_dir() else run / "config.yaml").stat().st_mtime


def file_kind(file: Path) -> str:
    """What a file is, as far as its name and its first bytes say it: CHECKPOINT, "a text file", "an image", ..."""
    if file.suffix in EXPORTED.values():
        return "an exported file"
    with file.open("rb") as opened:
        start = opened.read(512)
    if start.startswith(b"PK\x03\x04"):  # as torch.save begins
        # zipfile has many kinds of errors, for a checkpoint that was cut or changed.
        with suppress(Exception), zipfile.ZipFile(file) as records:
            if not any(name.endswith("/data.pkl") for name in records.namelist()):
                return "an archive of other files"
        return CHECKPOINT
    if not start:
        return "an empty file"
    if file_extension(file.name) in IMAGE_EXTENSIONS:
        return "an image"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)  # whose last letter may be cut
    except UnicodeDecodeError:
        return "a file of another format"
    return "a text file" if all(letter.isprintable() or letter.isspace() for letter in text) else "a file of another format"


def suspects_command(path: Path) -> str:
    """Lists the images of a run, or of folds, whose label is probably wrong."""
    return f"imgrec check {shlex.quote(f'ckpt={path}')} suspects=true {shlex.quote(f'out={path}/suspects.json')}"
