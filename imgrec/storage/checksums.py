"""Checksums of shards, which need not fit into memory."""

import errno
import os
import stat
import zlib
from pathlib import Path
from typing import BinaryIO

SUMMED_BYTES = 2**20  # that are read at once


def open_shard(path: str | Path) -> BinaryIO:
    """OSError for what is no regular file: a named pipe would be waited for."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is not a file")
    return open(path, "rb", buffering=0)


def part_checksum(file: BinaryIO, offset: int, length: int) -> int | None:
    """CRC-32 of a part of a file, None where that ends before. Not by a map: a file that becomes shorter would end the process."""
    checksum, end = 0, offset + length
    while offset < end:
        piece = os.pread(file.fileno(), min(SUMMED_BYTES, end - offset), offset)
        if not piece:
            return None
        checksum = zlib.crc32(piece, checksum)
        offset += len(piece)
    return checksum
