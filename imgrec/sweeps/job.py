"""One job of a sweep: trained as the single run that it is, and job=K, which runs it alone.

job=K is for SLURM's job arrays, whose tasks run at the same time, each with its own processes:
python -m imgrec.train -m job=3 optim.lr=0.1,0.01 seed=0,1. K counts from 0 in the order in which the sweep would run its jobs.
job=count prints how many there are; job=none runs nothing and shows the table of what the others have left.
"""

import os
import sys
from contextlib import closing
from typing import Any, Protocol

from imgrec.config.annotations import whole_number
from imgrec.config.load import load_config
from imgrec.config.schema import RunConfig
from imgrec.distributed.world import read_world
from imgrec.errors import ConfigError
from imgrec.sweeps.folder import Job, SweepFolder, choose_sweep_folder, open_sweep_folder
from imgrec.sweeps.grid import JOB, SweepPlan
from imgrec.sweeps.table import job_overrides, print_ranking
from imgrec.terminal import Terminal

OF_TUNE = ("imgrec/tune.py", "imgrec/train.py")  # python -m imgrec.tune starts what python -m imgrec.train does
OWN_KEYS = ("name", "id", "runs_dir", "resume")  # of the sweep, which sets them for each job


class Fit(Protocol):
    """imgrec.train.fit, which the command hands in."""

    def __call__(self, run: RunConfig, /, *, quiet: bool = False, command: list[str] | None = None) -> dict[str, Any]: ...


def run_one(plan: SweepPlan, config_dir: str | None, fit: Fit) -> int:
    """The command with job=K; the exit code. What the job raises is noted in the table and raised here."""
    jobs, which = plan.grid(), plan.job
    last = len(jobs) - 1
    if which == "count":
        print(len(jobs))
        return 0
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    id = plan.base["id"] or (f"sweep_{array}" if array else None)
    if which == "none":
        with closing(choose_sweep_folder(plan, id)) as folder:
            _show(folder)
        return 0
    number = None if which is None else whole_number(which)
    if number is None or number > last:
        raise ConfigError(f"{JOB}={which}: expected a number from 0 to {last}, count or none. Set {JOB}={last} for the last job.")
    world = read_world()
    if id is None and world.size > 1:
        raise ConfigError(f"{JOB}={which} on {world.size} processes: they must agree on the sweep. Set id=sweep_1.")
    if world.rank:  # the first process keeps the table
        folder = choose_sweep_folder(plan, id)
        train_job(folder, Job(number, jobs[number], ""), config_dir, fit, quiet=False)
        return 0
    with closing(open_sweep_folder(plan, id)) as folder:
        with folder.updating():
            job = [folder.add(overrides) for overrides in jobs][number]
            folder.claim(job)
            job.status = "started"
        Terminal().say(f"job {which} of 0 to {last} in {folder.path}: {job_overrides(job, plan)}")
        try:
            job.finish(train_job(folder, job, config_dir, fit, quiet=False), folder.monitor)
        except BaseException as error:
            job.fail(error)
            raise
        finally:
            with folder.updating():
                folder.jobs[job.number] = job
    return 0


def _show(folder: SweepFolder) -> None:
    if not folder.jobs:
        raise ConfigError(
            f"{folder.path}: no job of this sweep was run there. Set id=FOLDER of the sweep, or leave {JOB}=none out to run it."
        )
    with folder.updating():
        for job in folder.jobs:
            if (result := job.result()) is not None:
                job.finish(result, folder.monitor)
    print_ranking(Terminal(), folder)


def train_job(folder: SweepFolder, job: Job, config_dir: str | None, fit: Fit, *, quiet: bool) -> dict[str, Any]:
    """Train a job of a sweep as the single run that it is; the content of its result.json."""
    overrides = [
        *(text for text in job.overrides if text.partition("=")[0] not in OWN_KEYS),
        f"runs_dir={folder.path.parent}",
        f"name={folder.path.name}",
        f"id={job.number}",
        *([f"trainer.pruning_thresholds=[{','.join(map(str, job.thresholds))}]"] if job.thresholds else []),
    ]
    own = ["--config-dir", config_dir] if config_dir else []
    program = [sys.argv[0], "train"] if sys.argv[1:2] in (["train"], ["tune"]) else [sys.argv[0].replace(*OF_TUNE)]
    command = [*program, *own, *overrides]
    return fit(load_config("train", overrides, config_dir), quiet=quiet, command=command)
