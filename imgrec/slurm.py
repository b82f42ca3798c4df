"""Submit a training to SLURM: python -m imgrec.slurm nodes=2 gpus_per_node=4 time=8h -- model=resnet data=imagenet

Fills launch/slurm.sbatch in, keeps it beside the log in RUNS_DIR/slurm and hands it to sbatch. What can be told before the queue is told here:
the words after -- are composed as `imgrec train` would. Imports no torch.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from imgrec.config.checks import check_batch_divides
from imgrec.config.compose import compose_config, load_config, quote_values
from imgrec.config.options import group_names
from imgrec.config.schema import RunConfig, parse_settings, run_config
from imgrec.errors import ConfigError
from imgrec.slurmscript import Options, array_tasks, fill_template, parse_time, sbatch_time, template_file


@dataclass(frozen=True, kw_only=True)
class Submission:
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
    """What the words after -- mean."""

    words: list[str]  # as they are typed, --config-dir too
    run: RunConfig  # of a sweep: its first job
    jobs: int | None  # of a sweep
    folder: str  # name of the folder under runs_dir


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Check the words, write the script, submit it, and say where to look."""
    if "--" not in argv:
        raise ConfigError(
            "no training was given. Type it after --: imgrec slurm nodes=2 gpus_per_node=4 -- model=resnet data=mnist"
        )
    place = list(argv).index("--")
    given, words = list(argv[:place]), list(argv[place + 1 :])
    _check_side(given)
    texts = [field.name for field in fields(Submission) if field.type == (str | None)]
    asked = parse_settings(Submission, compose_config("slurm", quote_values(given, texts)))
    training = _training(words, config_dir)
    _check(asked, training)
    logs = Path(training.run.runs_dir).absolute() / "slurm"
    text = job_script(asked, training, logs=logs, source=shlex.join(["imgrec", "slurm", *given, "--", *training.words]))
    if asked.dry_run:
        print(text, end="")
        return 0
    number, kept = _submit(text, logs, training.folder)
    _say(asked, training, number, logs, kept)
    return 0


def _check_side(given: Sequence[str]) -> None:
    """ConfigError for a training's word in front of --."""
    known = {field.name for field in fields(Submission)}
    trainings = {field.name for field in fields(RunConfig)} | set(group_names())
    for word in given:
        root = re.split(r"[.=/]", word.lstrip("+~"), maxsplit=1)[0]
        if word in ("-m", "--multirun") or (root in trainings - known):
            raise ConfigError(f"{word} belongs to the training. Type it after --: imgrec slurm KEY=VALUE ... -- {word} ...")


def _training(words: list[str], config_dir: str | None) -> Training:
    sweep = [word for word in words if word not in ("-m", "--multirun")]
    place = ["--config-dir", str(Path(config_dir).absolute())] if config_dir else []
    if len(sweep) == len(words):
        run = load_config("train", words, config_dir)
        return Training([*place, *words], run, None, run.name)
    from imgrec.sweeps.grid import check_sweep, grid_jobs, sweep_name

    if any(word.startswith(("hydra/sweeper=", "hydra.")) for word in sweep):
        raise ConfigError(
            "a sweep whose jobs depend on results cannot be an array. Leave the words with hydra out, or run the sweep inside one job."
        )
    if own := next((word for word in sweep if word.startswith("job=")), None):
        raise ConfigError(
            f"{own}: each task of the array has its own. Leave it out, and type array={own[4:]} for that job alone."
        )
    base, sweeps = check_sweep(sweep, config_dir, intervals=False)
    run = run_config(base)
    return Training([*place, "-m", *sweep], run, len(grid_jobs(sweep, sweeps)), sweep_name(run.name, sweeps))


def _check(asked: Submission, training: Training) -> None:
    """ConfigError for what cannot run, or not go on, the way it is asked for."""
    run, tasks = training.run, asked.tasks
    if asked.gpus_per_node and tasks != asked.gpus_per_node:
        raise ConfigError(
            f"tasks_per_node={tasks} gpus_per_node={asked.gpus_per_node}: each GPU has one process. Leave tasks_per_node out, or set gpus_per_node={tasks}."
        )
    if asked.gpus_per_node and run.trainer["accelerator"] == "cpu":
        raise ConfigError(
            f"trainer.accelerator=cpu, but gpus_per_node={asked.gpus_per_node}. Set gpus_per_node=0 tasks_per_node={tasks}."
        )
    if not asked.gpus_per_node and run.trainer["accelerator"] in ("gpu", "cuda"):
        raise ConfigError(f"trainer.accelerator={run.trainer['accelerator']}, but gpus_per_node=0. Set gpus_per_node=1 or more.")
    for key, have, line in (("devices", tasks, "tasks_per_node"), ("num_nodes", asked.nodes, "nodes")):
        value = run.trainer[key]
        count = len(value) if isinstance(value, list) else value
        if count not in ("auto", have):
            raise ConfigError(f"trainer.{key}={value}, but {line}={have}. Leave trainer.{key} out: it is read from SLURM.")
    check_batch_divides(run.batch_size, asked.nodes * tasks)
    if not run.resume:
        raise ConfigError(
            "resume=false: a job that is queued again has to find its run. Leave it out: each new job has a new folder."
        )
    if any("/" in str(name) for name in (run.name, run.id or "", asked.job_name or "")):
        raise ConfigError(
            f"name={run.name} id={run.id} job_name={asked.job_name}: they are words without a slash; runs_dir=FOLDER says where runs are kept."
        )
    if asked.time is not None and asked.signal_s >= parse_time(asked.time):
        raise ConfigError(
            f"signal_s={asked.signal_s}, but time={asked.time} is over by then: the job would save as soon as it starts. Set a longer time, or a smaller signal_s."
        )
    if asked.memory is not None and not re.fullmatch(r"\d+[KMGT]", asked.memory):
        raise ConfigError(f"memory={asked.memory}: memory takes a whole number and K, M, G or T. Type memory=64G.")
    if asked.array is not None and training.jobs is None:
        raise ConfigError(
            f"array={asked.array}, but there is no sweep. Type -m after --: imgrec slurm ... -- -m optim.lr=0.1,0.01"
        )


def job_script(asked: Submission, training: Training, *, logs: Path, source: str) -> str:
    """launch/slurm.sbatch with the settings filled in; the log goes into `logs`."""
    numbers = "%j" if training.jobs is None else "%A_%a"
    options: Options = {
        "job-name": asked.job_name or training.folder,
        "nodes": str(asked.nodes),
        "ntasks-per-node": str(asked.tasks),
        "gpus-per-node": str(asked.gpus_per_node) if asked.gpus_per_node else None,
        "cpus-per-task": None if asked.cpus_per_task is None else str(asked.cpus_per_task),
        "time": None if asked.time is None else sbatch_time(asked.time),
        "signal": f"USR1@{asked.signal_s}",
        "output": f"{str(logs / training.folder).replace('%', '%%')}-{numbers}.log",
        "chdir": os.getcwd(),
        "mem": asked.memory,
        "partition": asked.partition,
        "account": asked.account,
        "qos": asked.qos,
        "constraint": asked.constraint,
        "array": None if training.jobs is None else array_tasks(asked.array, training.jobs),
        "mail-user": asked.mail,
        "mail-type": "END,FAIL,REQUEUE" if asked.mail else None,
    }
    body = {
        "requeue_on_failure=": f"requeue_on_failure={asked.requeue_on_failure}",
        "python=": f"{asked.setup}\npython={shlex.quote(sys.executable)}"
        if asked.setup
        else f"python={shlex.quote(sys.executable)}",
        "[[ -x $python ]]": None,
        "words=": f"words=({shlex.join(training.words)})",
    }
    extra = shlex.split(asked.extra) if asked.extra else []
    return fill_template(template_file().read_text(), options, extra=extra, body=body, head=f"Written by: {source}")


def _submit(text: str, logs: Path, name: str) -> tuple[str, Path]:
    """The job's number, and the script under its lasting name."""
    logs.mkdir(parents=True, exist_ok=True)
    file = logs / f"{name}.{os.getpid()}.sbatch"
    file.write_text(text)
    try:
        done = subprocess.run(["sbatch", "--parsable", str(file)], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        file.unlink()
        raise ConfigError(
            "there is no sbatch on this machine. Type this on a login node of the cluster, or set dry_run=true."
        ) from error
    if done.returncode:
        file.unlink()
        said = " ".join(line.removeprefix("sbatch: error: ").rstrip(".") for line in done.stderr.splitlines()[:2])
        raise ConfigError(f"sbatch refused the job: {said}. Change that key, or look at the script with dry_run=true.")
    number = done.stdout.strip().partition(";")[0]
    return number, file.rename(logs / f"{name}-{number}.sbatch")


def _say(asked: Submission, training: Training, number: str, logs: Path, kept: Path) -> None:
    run, array = training.run, training.jobs is not None
    each = f"{asked.nodes} node{'s' * (asked.nodes > 1)} x {asked.tasks} process{'es' * (asked.tasks > 1)}"
    folder = Path(run.runs_dir) / training.folder / (run.id or (f"sweep_{number}" if array else number))
    log = logs / f"{training.folder}-{number}{'_*' if array else ''}.log"
    print(f"job     {number}: {each}{f', array {array_tasks(asked.array, training.jobs or 0)}' if array else ''}")
    print(f"script  {kept}")
    print(f"run     {folder}")
    print(f"log     tail -F {log}")
    print(f"look    squeue -j {number}")
    print(f"cancel  scancel {number}")
    if array:
        print(f"table   python -m imgrec.train {shlex.join([*training.words, f'id={folder.name}', 'job=none'])}")


if __name__ == "__main__":
    from imgrec.cli import main as cli

    sys.exit(cli(["slurm", *sys.argv[1:]]))
