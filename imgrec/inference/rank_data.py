"""Whether all ranks of a run see the same images."""

import socket
from typing import Protocol, TypeVar

from imgrec.data.split_record import DataRecord, find_changes, other_classes
from imgrec.distributed.process_group import on_first_rank
from imgrec.errors import DataError

_T = TypeVar("_T")


class Gather(Protocol):
    """The value of each rank, on all of them."""

    def __call__(self, value: _T, /) -> list[_T]: ...


def compare_ranks(record: DataRecord, gather: Gather) -> None:
    """DataError on all ranks where one sees other classes or files than rank 0. Calls collectives."""
    digests = gather(record.digest())
    if len(set(digests)) == 1:
        return
    first = on_first_rank(lambda: record)
    changes = other_classes(first.classes, record.classes) or str(find_changes(first, record))
    rank, (host, difference) = next(
        (rank, found) for rank, found in enumerate(gather((socket.gethostname(), changes))) if digests[rank] != digests[0]
    )
    raise DataError(
        f"rank {rank} on {host} has other data than rank 0: {difference}. "
        "Set data.root=FOLDER that all machines share, or give each the same files."
    )
