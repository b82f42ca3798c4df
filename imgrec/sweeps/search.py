"""A sweep whose values Optuna chooses from the results so far. Its study is a journal file in the sweep's folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from imgrec.config.schema import monitor_mode
from imgrec.sweeps.arguments import Argument
from imgrec.sweeps.folder import HAVE_RESULT, Job
from imgrec.sweeps.grid import SweepPlan
from imgrec.training.stored_run import read_rows

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

NAME = "sweep"  # of the only study in the journal
JOURNAL = "optuna.journal"
UNPRUNED = 5  # trials that run to their end before any is pruned


class Search:
    """Optuna's study of a sweep. Make and use it inside `SweepFolder.updating` only: that lock is the journal's too."""

    def __init__(self, plan: SweepPlan, path: Path) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.plan = plan
        self.space = {argument.key: distribution(argument) for argument in plan.arguments if argument.is_swept}
        self.direction: Literal["minimize", "maximize"] = (
            "minimize" if monitor_mode(plan.base["monitor"]) == "min" else "maximize"
        )
        journal = path.absolute() / JOURNAL  # absolute: Optuna's lock is a link to it
        _drop_torn_line(journal)
        journal.with_name(f"{JOURNAL}.lock").unlink(missing_ok=True)  # of a killed process: Optuna waits 30 s for it
        self.storage = JournalStorage(JournalFileBackend(str(journal)))
        self.study = optuna.create_study(storage=self.storage, study_name=NAME, direction=self.direction, load_if_exists=True)

    def overrides(self, number: int) -> list[str]:
        """The overrides of trial `number`, the next one or an earlier one.

        The sampler is seeded by the run's seed and the trial's number, so what it proposes follows from the results before, not from
        where the search was interrupted.
        """
        import optuna
        from numpy.random import SeedSequence
        from optuna.trial import TrialState, create_trial

        trials = self.study.get_trials(deepcopy=False)
        if number == len(trials):
            seed = int(SeedSequence([self.plan.base["seed"], number]).generate_state(1)[0])
            # Asked in a copy and added whole: a process that is killed in between leaves no trial with a part of its values.
            copy = optuna.create_study(direction=self.direction, sampler=optuna.samplers.TPESampler(seed=seed))
            copy.add_trials(trials)
            if number == 0 and self.plan.first:
                copy.enqueue_trial(dict(self.plan.first))
            trial = copy.ask(self.space)
            self.study.add_trial(create_trial(state=TrialState.RUNNING, params=trial.params, distributions=trial.distributions))
            return self.plan.overrides(trial.params)
        return self.plan.overrides(trials[number].params)

    def tell(self, job: Job) -> None:
        """Pass a job's result and its metrics after each epoch to the study; not of a failed job, which is run again."""
        from optuna.trial import TrialState

        if job.status not in HAVE_RESULT or self.study.get_trials(deepcopy=False)[job.number].state.is_finished():
            return
        monitor = self.plan.base["monitor"]
        trial = self.storage.get_trial_id_from_study_id_trial_number(self.storage.get_study_id_from_name(NAME), job.number)
        for row in read_rows(Path(job.folder) / "metrics.csv") if self.plan.prune else ():
            self.storage.set_trial_intermediate_value(trial, int(row["epoch"]), float(row[monitor]))
        if job.status == "pruned":
            self.study.tell(job.number, state=TrialState.PRUNED)
        else:
            self.study.tell(job.number, job.value, TrialState.FAIL if job.value is None else TrialState.COMPLETE)

    def thresholds(self) -> list[float]:
        """What a new trial must reach by each epoch but the last, else it is pruned: the median of the trials that ran to their end.

        As in Optuna's MedianPruner, from the fifth such trial on. They stay as they were when the trial began, so a trial that is
        resumed, or runs beside others, is pruned at the same epoch.
        """
        import numpy as np
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if self.plan.prune else []
        curves = [trial.intermediate_values for trial in trials]
        if len(curves) < UNPRUNED:
            return []
        epochs = range(1, max(map(len, curves)))
        return [float(np.percentile([curve[epoch] for curve in curves if epoch in curve], 50)) for epoch in epochs]


def _drop_torn_line(journal: Path) -> None:
    """Cut off a last line without its end, which a full disk leaves: Optuna would read no line that is written behind it."""
    content = journal.read_bytes() if journal.exists() else b""
    if not content.endswith(b"\n"):
        journal.write_bytes(content[: content.rfind(b"\n") + 1])


def distribution(argument: Argument) -> "BaseDistribution":
    """What Optuna draws the values of an argument from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if argument.kind == "list":
        return CategoricalDistribution(argument.values)
    low, high = argument.values
    if argument.kind == "int":
        return IntDistribution(int(low), int(high))
    return FloatDistribution(float(low), float(high), log=argument.kind == "log")
