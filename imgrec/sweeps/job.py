"""One job of a sweep alone: python -m imgrec.train -m job=3 optim.lr=0.1,0.01 seed=0,1

For SLURM's job arrays, whose tasks run at the same time, each with its own processes. K counts from 0 in the order in which the sweep would run
its jobs. job=count prints how many there are; job=none runs nothing and shows the table of what the others have left.
"""

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from imgrec.config.compose import load_config
from imgrec.config.schema import Node
from imgrec.distributed.world import world
from imgrec.errors import ConfigError, ImgrecError, Stopped
from imgrec.sweeps.folder import Job, SweepFolder, choose_sweep_folder
from imgrec.sweeps.grid import Sweeps, grid_jobs, sweep_name
from imgrec.sweeps.table import job_overrides, print_ranking
from imgrec.terminal import Terminal

WHICH = "job"
OWN_KEYS = ("name", "id", "runs_dir", "resume")  # of the sweep: a job gets those of its place in it


def run_one(which: str, argv: Sequence[str], words: Sequence[str], base: Node, sweeps: Sweeps, config_dir: str | None) -> int:
    """The command with job=WHICH; 0. What the job raises goes on to the caller, once the table has it."""
    jobs = grid_jobs(words, sweeps)
    last = len(jobs) - 1
    if which == "count":
        print(len(jobs))
        return 0
    if which != "none" and not (which.isdecimal() and int(which) <= last):
        raise ConfigError(
            f"{WHICH}={which}: {WHICH} takes a number from 0 to {last}, count or none. Set {WHICH}={last} for the last one."
        )
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    given = base["id"] or (f"sweep_{array}" if array else None)
    here = world()
    if given is None and here.size > 1:
        raise ConfigError(f"{WHICH}={which} on {here.size} processes: they must agree on the sweep. Set id=sweep_1.")
    folder = choose_sweep_folder(
        runs_dir=base["runs_dir"],
        name=sweep_name(base["name"], sweeps),
        id=given,
        resume=base["resume"],
        words=argv,
        monitor=base["monitor"],
    )
    if which == "none":
        _show(folder)
        return 0
    if here.rank:  # the first process keeps the table
        job = Job(int(which), jobs[int(which)])
        train_job(folder, job, config_dir, quiet=False)
        return 0
    with folder.updating():
        for one in jobs:
            folder.job(one, status="waiting")
    Terminal().say(
        f"job {which} of 0 to {last} in {folder.path}: {job_overrides(folder.jobs[int(which)], {w.partition('=')[0] for w in words} - sweeps.keys())}"
    )
    _train(folder, int(which), config_dir)
    return 0


def _train(folder: SweepFolder, number: int, config_dir: str | None) -> None:
    with folder.updating():
        folder.jobs[number].status = "started"
    try:
        result = train_job(folder, folder.jobs[number], config_dir, quiet=False)
    except BaseException as error:
        with folder.updating():
            if isinstance(error, Stopped):
                folder.jobs[number].status = "stopped"
            else:
                folder.jobs[number].fail(_line(error), bad_input=isinstance(error, ImgrecError))
        raise
    with folder.updating():
        folder.jobs[number].take(result, folder.monitor)


def _line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, ImgrecError) else f"{type(error).__name__}: {text}"


def _show(folder: SweepFolder) -> None:
    if not folder.jobs:
        raise ConfigError(
            f"{folder.path}: no job of this sweep was run there. Set id=FOLDER of the sweep, or leave {WHICH}=none out to run it."
        )
    with folder.updating():
        for job in folder.jobs:
            if (found := folder.result(job)) is not None:
                job.take(found, folder.monitor)
    print_ranking(Terminal(), folder)


def train_job(folder: SweepFolder, job: Job, config_dir: str | None, *, quiet: bool) -> dict[str, Any]:
    """Train a job of a sweep as the single run that it is; the content of its result.json."""
    from imgrec.train import fit

    words = [
        *(word for word in job.words if word.partition("=")[0] not in OWN_KEYS),
        f"runs_dir={_quoted(str(folder.path.parent))}",
        f"name={folder.path.name}",
        f"id={job.number}",
    ]
    own = ["--config-dir", config_dir] if config_dir else []
    command = [sys.argv[0], *(["train"] if sys.argv[1:2] == ["train"] else []), *own, *words]
    return fit(load_config("train", words, config_dir), quiet=quiet, command=command)


def _quoted(path: str) -> str:
    """A path as a value of Hydra's grammar."""
    return path if re.fullmatch(r"[\w./+-]+", path) else "'" + path.replace("\\", "\\\\").replace("'", "\\'") + "'"
