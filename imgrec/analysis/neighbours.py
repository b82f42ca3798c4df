"""The nearest of many vectors, a block of them after another."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Nearest(NamedTuple):
    """The nearest vectors of each query, the nearest first."""

    distances: Tensor  # float32 [Q, k], 1 - the cosine of the angle
    rows: Tensor  # int64 [Q, k], in all blocks together; of equally near ones the first


def find_nearest(queries: Tensor, blocks: Iterable[Tensor], k: int) -> Nearest:
    """queries: float [Q, D]. blocks: float [B, D] each; of them k are kept, so a million vectors take the memory of a block.

    k is lowered to the number of vectors.
    """
    directions = F.normalize(queries.float())
    distances = torch.empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.int64)
    start = 0
    for block in blocks:
        here = 1 - directions @ F.normalize(block.float()).T
        numbers = torch.arange(start, start + len(block)).expand(len(queries), -1)
        distances, rows = torch.cat([distances, here], dim=1), torch.cat([rows, numbers], dim=1)
        start += len(block)
        best = distances.sort(dim=1, stable=True)
        distances = best.values[:, :k]
        rows = rows.gather(1, best.indices[:, :k])
    return Nearest(distances.clamp_min(0), rows)
