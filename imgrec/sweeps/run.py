"""Many runs from one command: python -m imgrec.train -m optim.lr=0.1,0.01 model=resnet,vgg

Hydra's sweepers choose the jobs (all combinations; with hydra/sweeper=optuna what the results so far suggest); each job is a run of
its own, in RUNS_DIR/NAME/sweep_K/JOB. The same command again goes on: what is finished is read, not trained, what was begun is finished, and
what failed is tried again. job=K runs one of them alone (imgrec.sweeps.job).
"""

import gc
import logging
import math
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.progress import Progress, TaskID

from imgrec.config.options import conf_dir
from imgrec.distributed import signals
from imgrec.distributed.world import world
from imgrec.errors import ConfigError, Died, ImgrecError, Stopped
from imgrec.sweeps.folder import Job, SweepFolder, choose_sweep_folder
from imgrec.sweeps.grid import check_sweep, optuna_settings, sweep_name
from imgrec.sweeps.job import WHICH, run_one, train_job
from imgrec.sweeps.table import LastEpochColumn, job_overrides, job_results, print_ranking
from imgrec.terminal import Terminal

# Hydra's log is silent and its folders go to a temporary place: the run folders hold config and log already.
QUIET = ("hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.job.chdir=false")


def sweep(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Run all jobs of a sweep and show them ranked; 0 if all passed, 75 if it was stopped, 2 if one failed for bad input, else 1.

    Raises ConfigError, before the first job, for what can be told by then.
    """
    argv = list({_key(word): word for word in argv}.values())  # of two words for a key the later one counts, as in a single run
    which = next((word.partition("=")[2] for word in argv if _key(word) == WHICH), None)
    argv = [word for word in argv if _key(word) != WHICH]
    if world().size > 1 and which is None:
        raise ConfigError(
            f"-m under {world().started_by}: each job starts its own processes. "
            f"Type python -m imgrec.train -m ... without it, or add {WHICH}=0 to run the first job alone."
        )
    words = [word for word in argv if not _key(word).startswith("hydra")]
    settings = [word for word in argv if word not in words]
    optuna = "hydra/sweeper=optuna" in settings
    base, sweeps = check_sweep(words, config_dir, intervals=optuna)
    if which is not None:
        if optuna:
            raise ConfigError(
                f"{WHICH}={which}: what Optuna proposes depends on the jobs before. Leave {WHICH} or hydra/sweeper out."
            )
        return run_one(which, argv, words, base, sweeps, config_dir)
    folder = choose_sweep_folder(
        runs_dir=base["runs_dir"],
        name=sweep_name(base["name"], sweeps),
        id=base["id"],
        resume=base["resume"],
        words=argv,
        monitor=base["monitor"],
    )
    if optuna:
        settings = optuna_settings(settings, monitor=base["monitor"], seed=base["seed"])
    elif not any(word.startswith("hydra.sweeper.max_batch_size=") for word in settings):
        settings = [*settings, "hydra.sweeper.max_batch_size=1"]  # else Hydra composes all combinations before the first is run
    screen = Terminal()
    with _multirun(settings, config_dir) as (sweeper, run), folder:
        total = sweeper.get("n_trials") or math.prod(map(len, sweeps.values()))
        screen.say(f"{total} jobs in {folder.path}, ranked by their best {folder.monitor}", style="bold")
        if optuna:
            screen.say(
                f"Optuna's objective is a job's best {folder.monitor}, to {sweeper['direction']}; sampler seed {base['seed']}"
            )
        with screen.bar() as bar:
            jobs = Jobs(folder, screen, config_dir, bar=bar, total=total, fixed={_key(word) for word in words} - sweeps.keys())
            try:
                run(jobs, words)
            except _Stop:
                screen.say()
            except ValueError:  # Optuna names the best trial at its end, also where none has finished
                if not optuna or any(job.status == "finished" for job in folder.jobs):
                    raise
        folder.save()
        print_ranking(screen, folder)
    if jobs.stopped is not None:
        left = total - sum(job.status == "finished" for job in folder.jobs)
        screen.say(f"{jobs.stopped} {left} of {total} jobs are not finished.")
        return signals.STOPPED
    failed = [job for job in jobs.met if job.status == "failed"]
    return 0 if not failed else 2 if any(job.bad_input for job in failed) else 1


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


class _Stop(BaseException):
    """Ends the sweep; no Exception, which Hydra would take for the job's own."""


class Jobs:
    """The function that Hydra calls for each job. A failed one is noted and gives None, so that the others are run."""

    def __init__(
        self, folder: SweepFolder, screen: Terminal, config_dir: str | None, *, bar: Progress, total: int, fixed: Collection[str]
    ) -> None:
        self.folder, self.screen, self.config_dir, self.bar, self.total = folder, screen, config_dir, bar, total
        self.fixed = fixed
        self.met: list[Job] = []
        self.stopped: str | None = None  # why the sweep ended before its end
        self.epoch = LastEpochColumn()
        bar.columns = (*bar.columns, self.epoch)
        self._task: TaskID = bar.add_task("jobs", total=total, note="")

    def __call__(self, _: Any) -> float | None:
        from hydra.core.hydra_config import HydraConfig

        job = self.folder.job(list(HydraConfig.get().overrides.task))
        # A job is a run like any other: Lightning takes it for one of Hydra's else; Hydra puts it back.
        HydraConfig.instance().cfg = None
        if (reason := signals.stop_reason()) is not None:
            self._stop(f"stopped by {reason} between two jobs. Start the same command again to go on.")
        self.met.append(job)
        self.screen.say(f"job {len(self.met)}/{self.total}  {job_overrides(job, self.fixed)}  log in {job.folder}/log.txt")
        self.epoch.folder = job.folder
        before = self.folder.result(job)
        try:
            result = before or self._train(job)
        except Stopped as stopped:
            job.status = "stopped"
            self._stop(str(stopped))
        except ImgrecError as error:
            job.fail(str(error), bad_input=True)
            self.screen.say(f"  failed: {error}", style="red")
        except Died as died:
            job.fail(str(died), bad_input=False)
            self.screen.say(f"  failed: {died}", style="red")
        except Exception as error:
            job.fail(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", bad_input=False)
            self.screen.say(f"  failed: {job.error}", style="red")
            traceback.print_exc()  # no fault of the user's
        else:
            job.take(result, self.folder.monitor)
            self.screen.say(f"  {job_results(job, self.folder.monitor)}{' (finished before)' if before else ''}")
        self.folder.save()
        self.bar.advance(self._task)
        return job.value if job.status == "finished" else None

    def _stop(self, line: str) -> NoReturn:
        self.stopped = line
        raise _Stop

    def _train(self, job: Job) -> dict[str, Any]:
        job.status = "started"
        self.folder.save()
        try:
            return train_job(self.folder, job, self.config_dir, quiet=True)
        finally:
            gc.collect()  # trainer and network refer to each other: free their memory on the device


@contextmanager
def _multirun(
    settings: Sequence[str], config_dir: str | None
) -> Iterator[tuple[dict[str, Any], Callable[[Jobs, Sequence[str]], None]]]:
    """The sweeper's composed settings, and the function that runs the sweep of some words.

    hydra.main would read sys.argv, print errors itself and exit; GlobalHydra's multirun is what it calls, and what plugins' tests use.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    with tempfile.TemporaryDirectory(prefix="imgrec_sweep_") as litter, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="optuna|hydra_plugins")  # of their age: both were last released in 2022
        logging.getLogger("hydra_plugins").setLevel(logging.CRITICAL)
        search = [f"hydra.searchpath=[file://{os.path.abspath(config_dir)}]"] if config_dir else []
        settings = [*settings, *QUIET, f"hydra.sweep.dir={litter}", *search]
        with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            try:
                config = compose("train", settings, return_hydra_config=True)
                sweeper = {
                    str(key): config.hydra.sweeper[key]
                    for key in config.hydra.sweeper
                    if not OmegaConf.is_missing(config.hydra.sweeper, key)
                }
            except (HydraException, OmegaConfBaseException) as error:
                line = str(error).strip().splitlines()[0].rstrip(".")
                raise ConfigError(f"{line}. Type hydra/sweeper=basic or optuna{_sweeper_keys(settings)}.") from error
            if "optuna" in str(sweeper["_target_"]):
                import optuna

                optuna.logging.set_verbosity(logging.ERROR)
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            yield sweeper, lambda task, words: hydra.multirun("train", task, [*words, *settings], with_log_configuration=False)


def _sweeper_keys(settings: Sequence[str]) -> str:
    """', with hydra.sweeper.n_trials, ...': the keys of the sweeper that was chosen, where there is such a one."""
    from hydra import compose
    from hydra.errors import HydraException

    try:
        sweeper = compose(
            "train", [word for word in settings if word.startswith("hydra/sweeper=")], return_hydra_config=True
        ).hydra.sweeper
    except HydraException:
        return ""
    return ", with " + ", ".join(f"hydra.sweeper.{key}" for key in sweeper if not str(key).startswith("_"))
