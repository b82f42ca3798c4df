"""The folder that `imgrec pack` writes: for one process at a time, and for the shards of one pack."""

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from imgrec.errors import ConfigError
from imgrec.files import atomic_write
from imgrec.locks import lock_file
from imgrec.storage.index import INDEX, ShardIndex

UNFINISHED = "unfinished"  # the folder, beside the shards, of what is known about those that are done


@contextmanager
def own_folder(out: Path, source: str) -> Iterator[None]:
    """The folder, for this process alone; ConfigError where it holds something else than the begin of this pack."""
    mark, lock_path = out / UNFINISHED / "source", out / UNFINISHED / "lock"
    _check_free(out, mark, lock_path, source)
    make_folder(out, mark.parent)
    with ExitStack() as stack:
        try:
            lock_file(stack.enter_context(lock_path.open("w")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, FileNotFoundError) as error:  # the second where that process has ended just now
            raise ConfigError(f"out={out}: another process packs into it. Wait for it, or set out=ANOTHER.") from error
        _check_free(out, mark, lock_path, source)  # which another process may have finished meanwhile
        atomic_write(mark, source)
        yield


def _check_free(out: Path, mark: Path, lock_path: Path, source: str) -> None:
    """ConfigError for a folder that holds something else than the begin of this pack."""
    other = f"Set out=ANOTHER, or remove {out}."
    if (out / INDEX).is_file():
        same = f"these images are packed there already. Type imgrec train data=shards data.root={out}, or set out=ANOTHER."
        raise ConfigError(
            f"out={out}: {same if ShardIndex.read(out).source == source else f'there is a pack of other images or settings. {other}'}"
        )
    if mark.is_file() and mark.read_bytes() != source.encode():
        raise ConfigError(f"out={out} holds an unfinished pack of other images or settings. {other}")
    # A pack that was killed in its first moment has left these, but no mark.
    begun = {mark.parent, lock_path, mark.with_name(f"{mark.name}.unfinished")}
    if not mark.is_file() and out.is_dir() and not begun.issuperset(out.rglob("*")):
        raise ConfigError(f"out={out} is not empty. Set out=ANOTHER.")


def make_folder(out: Path, folder: Path) -> None:
    """A folder in `out`, or that itself; ConfigError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out={out}: the folder cannot be made: {error.strerror}. Set out=FOLDER in another place.") from error
