"""File locks: of a run directory, which one process at a time uses, and of other files; none where the file system has none."""

import errno
import fcntl
import os
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

# Of Lustre mounted without flock, NFSv3 without lock service.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


def lock_folder(path: Path) -> IO[str] | None:
    """The open lock file of a directory, None where another process has locked it."""
    file = (path / ".lock").open("w")
    try:
        lock_file(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    # A forked loader worker holds the lock too, and outlives a killed run by some seconds: the next start would fail.
    os.register_at_fork(after_in_child=file.close)
    return file


def lock_file(file: IO[Any] | int, operation: int) -> bool:
    """fcntl.flock of a file or its descriptor; does nothing on a file system that has no locks, and returns False."""
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether another process has locked a directory."""
    if not (path / ".lock").exists():
        return False
    with lock_folder(path) or nullcontext() as file:
        return file is None
