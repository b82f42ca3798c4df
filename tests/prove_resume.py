"""Kill real runs at random moments, a hundred times, and compare each with the unbroken one, bit for bit: make prove-resume

    python tests/prove_resume.py [--kills 100] [--seed 0]

A run has everything on (resumed_runs.EVERYTHING). It is killed with SIGKILL after a random time, in most cases less
than the unbroken one took, started again, and maybe killed again, until it is through; of two processes sometimes only
one is killed, and the other has to end by itself. Exit code 1 if a bit differs.
"""

import os
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

from processes import join_ranks, start_ranks
from resumed_runs import asked_kills, assert_same, finish_run, load_run, read_outcome
from rich.console import Console
from rich.progress import track
from rich.table import Table

import imgrec.training.step_boundary
import imgrec.training.summary  # before the forks, which then need not import it each
import imgrec.training.trainer  # noqa: F401
from imgrec.config.schema import RunConfig
from imgrec.train import fit
from imgrec.training.resume_point import latest_checkpoint

WAYS = [(size, workers) for size in (1, 2, 3) for workers in (0, 2)]  # processes, loader workers of each
AT = ("before any save", "train", "validate", "end")


def main() -> int:
    asked, chance = asked_kills(__doc__, 100)
    resumed_from: dict[tuple[int, int], Counter[str]] = {way: Counter() for way in WAYS}
    runs: Counter[tuple[int, int]] = Counter()
    differ: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        unbroken, seconds = {}, {}
        for way in WAYS:
            begun = time.perf_counter()
            unbroken[way] = finish_run(run_of(Path(place, f"unbroken_{way[0]}_{way[1]}"), way), size=way[0])
            seconds[way] = time.perf_counter() - begun
        folder, way, killed = Path(place, "0"), WAYS[0], 0
        kills = iter(track(range(asked), "kills", console=Console(stderr=True)))
        while True:
            with start_ranks(way[0], partial(train_quietly, run_of(folder, way))) as ranks:
                # The more often it was killed, the longer it is left alone: else a machine that has become busy would never let it finish.
                time.sleep((1.5 + 0.2 * killed) * chance.random() * seconds[way])
                for victim in ranks if chance.random() < 0.7 else [chance.choice(ranks)]:
                    victim.kill()
                codes = join_ranks(ranks)
            if all(code == 0 for code in codes):
                runs[way] += 1
                try:
                    assert_same(read_outcome(folder / "r/a"), unbroken[way])
                except AssertionError as error:
                    differ.append(f"{folder.name}: {way[0]} processes, {way[1]} workers: {error}")
                folder, way, killed = Path(place, str(sum(runs.values()))), WAYS[sum(runs.values()) % len(WAYS)], 0
                if sum(map(Counter.total, resumed_from.values())) >= asked:
                    break
                continue
            found = latest_checkpoint(folder / "r/a/checkpoints", print)
            killed += 1
            resumed_from[way][found[1]["resume"]["position"]["stage"] if found else AT[0]] += 1
            next(kills, None)
    show(resumed_from, runs, differ)
    return 1 if differ else 0


def train_quietly(run: RunConfig, rank: int) -> None:
    with open(os.devnull, "w") as nowhere:  # a process says a line when the other one is killed
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    fit(run, quiet=True)


def run_of(folder: Path, way: tuple[int, int]) -> RunConfig:
    return load_run(folder, f"num_workers={way[1]}", "trainer.devices=auto", "trainer.save_every_steps=2", "trainer.timeout_s=20")


def show(resumed_from: dict[tuple[int, int], Counter[str]], runs: Counter[tuple[int, int]], differ: list[str]) -> None:
    table = Table(
        "processes",
        "loader workers",
        "kills",
        *(f"resumed {at}" if at == AT[0] else f"in {at}" for at in AT),
        "finished",
        "not equal",
    )
    for size, workers in WAYS:
        way = (size, workers)
        wrong = sum(f": {size} processes, {workers} workers:" in line for line in differ)
        table.add_row(
            *map(str, (size, workers, resumed_from[way].total(), *(resumed_from[way][at] for at in AT), runs[way], wrong))
        )
    Console(width=120).print(table)
    for line in differ:
        print(line)


if __name__ == "__main__":
    sys.exit(main())
