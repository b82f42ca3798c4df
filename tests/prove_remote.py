"""Kill real runs on shards of a slow, faulty server at chosen steps, and compare each with the unbroken one: make prove-remote

    python tests/prove_remote.py [--kills 20] [--seed 0]

The server answers after 10 ms, and 20% of its answers are wrong in one of the ways of range_server.FAULTS; an image is a
block of its own. A run with everything on (resumed_runs.EVERYTHING) is killed with SIGKILL four times at chosen moments,
and then left alone; of every second run each start begins with an empty cache. Then all that it has learnt and logged is
compared with the unbroken run from the folder, bit for bit, and what it was trained on in each epoch with the images that
there are. Exit code 1 if anything differs.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from range_server import served
from resumed_runs import asked_kills, assert_same, finish_run, kill_run
from rich.console import Console
from rich.progress import track
from shard_runs import logged_samples, logging, packed_photos, shards_run, train_images

from imgrec.storage import remote
from imgrec.training.module import Classifier
from imgrec.training.step_boundary import StepBoundary

MOMENTS = ((StepBoundary, "on_before_optimizer_step"), (Classifier, "training_step"), (Classifier, "validation_step"))
WORDS = ("data.window_shards=2", "num_workers=2", "trainer.save_every_steps=1")


def main() -> int:
    asked, chance = asked_kills(__doc__, 20)
    differ: list[str] = []
    killed = runs = 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        packed = packed_photos(place)
        unbroken = finish_run(shards_run(place / "unbroken", packed, *WORDS))
        remote.BLOCK_BYTES = 1
        with served(packed, latency_s=0.01, faults=0.2) as (url, server):
            progress = iter(track(range(asked), "kills", console=Console(stderr=True)))
            while killed < asked:
                run, log = shards_run(place / str(runs), url, *WORDS), place / f"log{runs}"
                with logging(log):
                    for _ in range(min(4, asked - killed)):
                        os.environ["IMGREC_CACHE"] = str(place / f"cache{runs}_{killed if runs % 2 else 0}")
                        where, name = chance.choice(MOMENTS)
                        kill_run(run, 1 if name == "validation_step" else chance.randint(1, 3), where, name)
                        killed += 1
                        next(progress, None)
                    outcome = finish_run(run)
                runs += 1
                try:
                    assert_same(outcome, unbroken)
                    for epoch, steps in logged_samples(log).items():
                        seen = sorted(np.concatenate(list(steps.values())).tolist())
                        assert seen == list(range(train_images(packed))), f"epoch {epoch}: {seen}"
                except AssertionError as error:
                    differ.append(f"run {runs}: {error}")
            print(
                f"{killed} kills of {runs} runs, all resumed and finished: {runs - len(differ)} equal the unbroken run; "
                f"{len(server.requests)} requests, {server.failed.total()} wrong answers ({dict(server.failed)})"
            )
    print(*differ, sep="\n", end="")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
