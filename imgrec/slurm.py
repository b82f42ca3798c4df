"""Submit a training to SLURM: python -m imgrec.slurm nodes=2 gpus_per_node=4 time=8h -- model=resnet data=imagenet

Checks both halves, without torch, and types the command: sbatch OPTIONS launch/slurm.sbatch ARGUMENTS. The training's
arguments are composed as `imgrec train` would, so an error is told now and not after hours in the queue.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from imgrec.config.annotations import whole_number
from imgrec.config.batch_checks import check_batch_divides
from imgrec.config.compose import compose_config
from imgrec.config.durations import SECONDS, parse_time
from imgrec.config.load import load_config
from imgrec.config.options import group_names, shipped_file
from imgrec.config.schema import RunConfig, dotted_types, parse_settings, run_config
from imgrec.distributed.command import run_command
from imgrec.errors import ConfigError, plural
from imgrec.files import is_directory_name
from imgrec.sweeps.folder import choose_sweep_folder
from imgrec.sweeps.folds import folds_override
from imgrec.sweeps.grid import is_sweep, plan_sweep
from imgrec.training.restart_count import count_start
from imgrec.training.run_dir import choose_run_dir

ENDED = "--ended"  # launch/slurm.sbatch calls `imgrec slurm --ended CODE ARGUMENTS` where a start of the job has ended
SCRIPT = "launch/slurm.sbatch"


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """The keys of conf/slurm.yaml."""

    nodes: int
    gpus_per_node: int
    tasks_per_node: int | None
    cpus_per_task: int | None
    memory: str | None
    time: str | None
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    array: str | None
    signal_s: int
    requeue_on_failure: int
    job_name: str | None
    mail: str | None
    extra: str | None
    setup: str | None
    dry_run: bool

    @property
    def tasks(self) -> int:
        """Processes on each node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)


@dataclass(frozen=True)
class Training:
    """What the arguments after -- mean."""

    arguments: list[str]  # as they are typed, --config-dir included
    run: RunConfig  # of a sweep: its first job
    jobs: int | None  # of a grid: its jobs are the tasks of an array
    name: str  # of the directory under runs_dir
    search: Path | None = None  # the directory of a search, whose workers are jobs of their own


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Check the arguments, submit the job, and say where to look."""
    if argv[:1] == [ENDED]:
        print(count_start(job_run_dir(argv[2:], config_dir), os.environ["SLURM_JOB_ID"], int(argv[1])))
        return 0
    if "--" not in argv:
        raise ConfigError(
            "no training. Type its arguments after --: imgrec slurm nodes=2 gpus_per_node=4 -- model=resnet data=mnist"
        )
    separator = list(argv).index("--")
    overrides, arguments = list(argv[:separator]), list(argv[separator + 1 :])
    _check_side(overrides)
    job = parse_settings(JobConfig, compose_config("slurm", overrides, types=dotted_types(JobConfig)))
    training = _training(arguments, config_dir)
    _check_job(job, training)
    logs = Path(training.run.runs_dir).absolute() / "slurm"
    command = sbatch_command(job, training, logs)
    if job.dry_run:
        print(f"# the script: {shipped_file(SCRIPT)}\n{shlex.join(command)}")
        return 0
    logs.mkdir(parents=True, exist_ok=True)
    number = _submit(command)
    record = logs / f"{training.name}-{number}.sh"
    record.write_text(f"{shlex.join(command)}\n")
    _print_next_steps(job, training, number, record)
    return 0


def _check_side(overrides: Sequence[str]) -> None:
    """ConfigError for an argument of the training before --."""
    known = {field.name for field in fields(JobConfig)}
    trainings = {field.name for field in fields(RunConfig)} | set(group_names())
    for text in overrides:
        root = re.split(r"[.=/]", text.lstrip("+~"), maxsplit=1)[0]
        if text in ("-m", "--multirun") or (root in trainings - known):
            raise ConfigError(f"{text} belongs to the training. Type it after --: imgrec slurm KEY=VALUE ... -- {text} ...")


def _training(arguments: list[str], config_dir: str | None) -> Training:
    folder = ["--config-dir", str(Path(config_dir).absolute())] if config_dir else []
    if (override := folds_override(arguments)) is not None:
        raise ConfigError(
            f"{override}: imgrec slurm submits no folds. Type sbatch --wrap {shlex.quote(shlex.join(['imgrec', 'train', *arguments]))}"
        )
    if not is_sweep(arguments):
        run = load_config("train", arguments, config_dir)
        return Training([*folder, *arguments], run, None, run.name)
    plan = plan_sweep(arguments, config_dir)
    if plan.job is not None:
        raise ConfigError(
            f"job={plan.job}: each task of the array sets its own. Leave it out, and set array={plan.job} for that job alone."
        )
    search = None if plan.trials is None else choose_sweep_folder(plan, plan.base["id"]).path
    jobs = len(plan.grid()) if search is None else None
    return Training([*folder, *arguments], run_config(plan.base), jobs, plan.name, search)


def job_run_dir(arguments: Sequence[str], config_dir: str | None) -> Path:
    """The run directory of `imgrec train ARGUMENTS` inside a SLURM job; of a sweep its own, or with job=K that of the job."""
    if not is_sweep(arguments):
        return choose_run_dir(load_config("train", arguments, config_dir)).path
    plan = plan_sweep(arguments, config_dir)
    return choose_sweep_folder(plan, plan.base["id"]).path / (plan.job or "")


def _check_processes(job: JobConfig, training: Training) -> None:
    """ConfigError for nodes, GPUs and processes that contradict each other or the training."""
    run, tasks = training.run, job.tasks
    if job.gpus_per_node and tasks != job.gpus_per_node:
        raise ConfigError(
            f"tasks_per_node={tasks}, but gpus_per_node={job.gpus_per_node}: expected one process per GPU. "
            f"Leave tasks_per_node out, or set gpus_per_node={tasks}."
        )
    if job.gpus_per_node and run.trainer.accelerator == "cpu":
        raise ConfigError(
            f"trainer.accelerator=cpu, but gpus_per_node={job.gpus_per_node}. Set gpus_per_node=0 tasks_per_node={tasks}."
        )
    if not job.gpus_per_node and run.trainer.accelerator in ("gpu", "cuda"):
        raise ConfigError(f"trainer.accelerator={run.trainer.accelerator}, but gpus_per_node=0. Set gpus_per_node=1 or more.")
    for key, value, node_key, expected in (
        ("devices", run.trainer.devices, "tasks_per_node", tasks),
        ("num_nodes", run.trainer.num_nodes, "nodes", job.nodes),
    ):
        if (len(value) if isinstance(value, list) else value) not in ("auto", expected):
            raise ConfigError(
                f"trainer.{key}={value}, but {node_key}={expected}. Leave trainer.{key} out: SLURM's value is used."
            )
    if training.search is not None and job.nodes * tasks > 1:
        raise ConfigError(
            f"nodes={job.nodes} tasks_per_node={tasks}: expected one process, as --search runs one trial at a time. "
            "Set one node with one GPU, and type the command once for each worker."
        )
    check_batch_divides(run.batch_size, job.nodes * tasks)


def _check_job(job: JobConfig, training: Training) -> None:
    """ConfigError for a job that cannot run, or cannot be resumed."""
    run = training.run
    _check_processes(job, training)
    if not run.resume:
        raise ConfigError(
            "resume=false: a job that is requeued resumes its run. Leave it out: each new job has a new run directory."
        )
    for key, name in (("name", run.name), ("id", run.id), ("job_name", job.job_name or None)):
        if name is not None and not is_directory_name(name):
            raise ConfigError(
                f"{key}={name}: expected a name for a directory, without a slash. "
                f"Set {key}=NAME, or runs_dir=FOLDER for where runs are kept."
            )
    if job.time is not None and job.signal_s >= parse_time(job.time):
        raise ConfigError(
            f"signal_s={job.signal_s}, but time={job.time} is not longer: the job would stop as soon as it starts. "
            "Set a longer time, or a smaller signal_s."
        )
    if job.memory is not None and not re.fullmatch(r"\d+[KMGT]", job.memory):
        raise ConfigError(f"memory={job.memory}: expected an integer with K, M, G or T. Type memory=64G.")
    if job.array is not None and training.jobs is None:
        raise ConfigError(
            f"array={job.array}, but this is no grid of jobs. Type -m after --: imgrec slurm ... -- -m optim.lr=0.1,0.01"
        )
    if job.extra is not None and not job.extra.startswith("-"):
        raise ConfigError(f'extra={job.extra}: expected options of sbatch. Type extra="--exclusive --nodelist=n1".')


def sbatch_command(job: JobConfig, training: Training, logs: Path) -> list[str]:
    """sbatch OPTIONS launch/slurm.sbatch ARGUMENTS; the log of the job is in `logs`."""
    numbers = "%j" if training.jobs is None else "%A_%a"
    options: dict[str, object] = {
        "job-name": job.job_name or training.name,
        "nodes": job.nodes,
        "ntasks-per-node": job.tasks,
        "gpus-per-node": job.gpus_per_node or None,
        "cpus-per-task": job.cpus_per_task,
        "mem": job.memory,
        "time": None if job.time is None else sbatch_time(job.time),
        "signal": f"USR1@{job.signal_s}",
        "output": f"{str(logs / training.name).replace('%', '%%')}-{numbers}.log",
        "chdir": os.getcwd(),
        **{key: getattr(job, key) for key in ("partition", "account", "qos", "constraint")},
        "array": array_tasks(job.array, training.jobs),
        "mail-user": job.mail,
        "mail-type": "END,FAIL,REQUEUE" if job.mail else None,
    }
    settings = {"python": sys.executable, "setup": job.setup, "requeue_on_failure": job.requeue_on_failure or None}
    return [
        "sbatch",
        *(f"--{key}={value}" for key, value in options.items() if value is not None),
        *shlex.split(job.extra or ""),
        str(shipped_file(SCRIPT)),
        *(f"{key}={value}" for key, value in settings.items() if value is not None),
        *training.arguments,
    ]


def _submit(command: list[str]) -> str:
    """The number of the job."""
    try:
        done = subprocess.run([command[0], "--parsable", *command[1:]], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ConfigError(
            "sbatch is not available on this machine. Type this on a login node of the cluster, or set dry_run=true."
        ) from error
    if done.returncode:
        reason = " ".join(line.removeprefix("sbatch: error: ").rstrip(".") for line in done.stderr.splitlines()[:2])
        raise ConfigError(f"sbatch refused the job: {reason}. Change that key; dry_run=true prints the command.")
    return done.stdout.strip().partition(";")[0]


def _print_next_steps(job: JobConfig, training: Training, number: str, record: Path) -> None:
    array = array_tasks(job.array, training.jobs)
    shape = f"{plural(job.nodes, 'node')} x {plural(job.tasks, 'process', 'es')}"
    run_id = training.run.id or (f"sweep_{number}" if array else number)
    run_dir = training.search or Path(training.run.runs_dir) / training.name / run_id
    print(f"job     {number}: {shape}{f', array {array}' if array else ''}")
    print(f"command {record}")
    print(f"run     {run_dir}")
    print(f"log     tail -F {shlex.quote(str(record.with_name(f'{training.name}-{number}')))}{'_*' if array else ''}.log")
    print(f"look    squeue -j {number}")
    print(f"cancel  scancel {number}")
    if array:
        print(f"table   imgrec train {shlex.join([*training.arguments, f'id={run_id}', 'job=none'])}")


def sbatch_time(text: str) -> str:
    """A time as sbatch reads it in one way only: DAYS-HH:MM:SS."""
    days, rest = divmod(parse_time(text), SECONDS[0])
    return f"{f'{days}-' if days else ''}{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"


def array_tasks(text: str | None, jobs: int | None) -> str | None:
    """The value of sbatch's --array for a grid of `jobs` jobs, None without one; ConfigError for a number that no job has."""
    if jobs is None:
        return None
    which, percent, most = (text or "").partition("%")
    numbers = [whole_number(number) for number in re.findall(r"\d+", which)]
    if not re.fullmatch(r"(\d+(-\d+)?(,\d+(-\d+)?)*)?(%[1-9]\d*)?", text or ""):
        raise ConfigError(
            f"array={text}: expected numbers of jobs and how many run at once. Type array=0-7, 0,3,5 or 0-{jobs - 1}%4."
        )
    if any(number is None or number >= jobs for number in numbers):
        raise ConfigError(f"array={text}, but the sweep has {plural(jobs, 'job')}. Type array=0-{jobs - 1} or less.")
    return (which or f"0-{jobs - 1}") + percent + most


if __name__ == "__main__":
    sys.exit(run_command("slurm", main, sys.argv[1:]))
