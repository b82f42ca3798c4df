"""Many runs from one command: python -m imgrec.train -m optim.lr=0.1,0.01 model=resnet,vgg

Every combination, or with --search the values that Optuna proposes; each job is a run of its own, in RUNS_DIR/NAME/sweep_K/JOB. The same
command again resumes the sweep: what is finished is read, not trained, what was started is finished, and what failed is tried again. Started
several times at once, it shares the jobs out. job=K runs one of them alone (imgrec.sweeps.job).
"""

import gc
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from rich.progress import Progress

from imgrec.config.overrides import SEARCH
from imgrec.distributed import signals
from imgrec.distributed.world import read_world
from imgrec.errors import ConfigError, Died, ExitCode, ImgrecError, NotFiniteError, Stopped, plural
from imgrec.sweeps.folder import DONE, HAVE_RESULT, Job, SweepFolder, open_sweep_folder
from imgrec.sweeps.grid import JOB, SweepPlan, plan_sweep
from imgrec.sweeps.job import Fit, run_one, train_job
from imgrec.sweeps.search import Search
from imgrec.sweeps.table import LastEpochColumn, job_overrides, job_results, print_ranking
from imgrec.terminal import Terminal, duration


def sweep(argv: Sequence[str], config_dir: str | None, fit: Fit, report: Callable[[Path], None] | None = None) -> int:
    """`run_sweep` of the command line `imgrec train ARGV`, or one job of it.

    Raises ConfigError, before the first job, for what can be checked by then.
    """
    plan = plan_sweep(argv, config_dir)
    if plan.job is not None:
        return run_one(plan, config_dir, fit)
    check_alone("-m", f"imgrec train -m ... without it, or add {JOB}=0 to run the first job alone")
    if plan.trials is not None:
        check_optuna(SEARCH)
    return run_sweep(plan, config_dir, fit, report)


def check_alone(what: str, type_instead: str) -> None:
    """ConfigError where this process is one of several that a launcher started."""
    if read_world().size > 1:
        raise ConfigError(f"{what} under {read_world().started_by}: each job starts its own processes. Type {type_instead}.")


def check_optuna(what: str) -> None:
    """ConfigError where Optuna, which `what` needs, is not installed."""
    if find_spec("optuna") is None:
        raise ConfigError(f'{what} needs Optuna, which is not installed. Type: pip install "imgrec[optuna]"')


def run_sweep(plan: SweepPlan, config_dir: str | None, fit: Fit, report: Callable[[Path], None] | None = None) -> int:
    """Run all jobs of a sweep and show them ranked; 0 if all passed, 75 if it was stopped, 2 if one failed for bad input, else 1.

    report: writes a page into its folder.
    """
    terminal = Terminal()
    with closing(open_sweep_folder(plan, plan.base["id"])) as folder:
        with terminal.bar() as bar:
            jobs = Jobs(plan, folder, config_dir, fit, terminal=terminal, bar=bar)
            stopped = None
            try:
                jobs.run()
            except Stopped as error:
                stopped = str(error)
        with folder.updating():  # what other processes have done in the meantime
            from imgrec.training.last_screen import write_or_say

            written = write_or_say(folder.path, partial(report, folder.path)) if report and plan.base["report"] else None
            print_ranking(terminal, folder, searched=plan.trials is not None, written=written)
    left = jobs.total - sum(job.status in HAVE_RESULT for job in folder.jobs[: jobs.total])
    if stopped is not None:
        terminal.say(f"{stopped} {left} of {jobs.total} jobs are not finished.")
        return ExitCode.STOPPED
    failed = [job for job in folder.jobs if job.status == "failed"]
    if left > len(failed):
        terminal.say(f"{left - len(failed)} of {jobs.total} jobs are run by other processes.")
    return 0 if not failed else 2 if any(job.refused for job in failed) else 1


class Jobs:
    """The jobs of a sweep, run one after the other. One that fails is noted and stops no other."""

    def __init__(
        self, plan: SweepPlan, folder: SweepFolder, config_dir: str | None, fit: Fit, *, terminal: Terminal, bar: Progress
    ) -> None:
        self.plan, self.folder, self.config_dir, self.fit = plan, folder, config_dir, fit
        self.terminal, self.bar, self.epoch = terminal, bar, LastEpochColumn()
        self.grid = plan.grid() if plan.trials is None else []
        self.total = plan.trials or len(self.grid)
        self.search: Search | None = None
        terminal.say(f"{plural(self.total, 'job')} in {folder.path}, ranked by their best {folder.monitor}", style="bold")
        with folder.updating():
            if plan.trials is not None:
                self.search = Search(plan, folder.path)
                goal, seed = self.search.direction, plan.base["seed"]
                terminal.say(f"Optuna's objective is a job's best {folder.monitor}, to {goal}; sampler seed {seed}")
            for job in folder.jobs:
                if job.status == "failed":
                    job.status = "waiting"  # to be tried again, by one process
        bar.columns = (*bar.columns, self.epoch)
        self.task = bar.add_task("jobs", total=self.total, note="")

    def run(self) -> None:
        """Run all that no other process runs. Raises Stopped where it was stopped before the end."""
        for number in range(self.total):
            if (reason := signals.stop_reason()) is not None:
                raise Stopped(f"stopped by {reason} between two jobs. Start the same command again to resume.")
            if (job := self._next(number)) is not None:
                self._run(job, number)
            self.bar.advance(self.task)

    def _next(self, number: int) -> Job | None:
        """Job `number`, done or claimed by this process; None where another process runs it."""
        with self.folder.updating():
            jobs = self.folder.jobs
            if self.search is None:
                job = self.folder.add(self.grid[number])
            elif number < len(jobs):
                job = jobs[number]
            else:
                job = self.folder.append(self.search.overrides(number), self.search.thresholds())
            if job.status in DONE:
                return job
            if not self.folder.claim(job):
                return None
            job.status = "started"
            return job

    def _run(self, job: Job, number: int) -> None:
        """Train a claimed job, or read its result, and say how it ended."""
        say, before, refused = self.terminal.say, job.status in DONE, False
        say(f"job {number + 1}/{self.total}  {job_overrides(job, self.plan)}  log in {job.folder}/log.txt")
        if not before:
            self.epoch.folder = job.folder
            result = job.result()
            before = result is not None
            try:
                result = result or train_job(self.folder, job, self.config_dir, self.fit, quiet=True)
                job.finish(result, self.folder.monitor)
            except Exception as error:
                job.fail(error)
                refused = job.refused and not isinstance(error, NotFiniteError)  # with another rate the loss may stay finite
                if isinstance(error, Stopped):
                    raise
                if not isinstance(error, ImgrecError | Died):  # no fault of the user's
                    traceback.print_exc()
            finally:
                gc.collect()  # trainer and network refer to each other: free their memory on the device
                with self.folder.updating():
                    self.folder.jobs[job.number] = job
                    if self.search is not None:
                        self.search.tell(job)
                self.folder.release(job)
        if job.status == "failed":
            say(f"  failed: {job.error}", style="red")
            if refused and number == 0 and self.plan.first is not None:
                raise ConfigError(job.error)  # of the defaults, so of most trials
        else:
            say(f"  {job_results(job, self.folder.monitor)}{' (finished before)' if before else ''}")
            if number == 0 and self.total > 1 and job.seconds is not None and not before:
                others = plural(self.total - 1, "other job")
                say(f"  {others}: {duration(job.seconds * (self.total - 1))} of training, if each takes as long")
