"""The script that `imgrec slurm` submits is launch/slurm.sbatch, and what cannot run is refused before it waits in a queue."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgrec import slurm, slurmscript
from imgrec.cli import main
from imgrec.config.compose import load_config
from imgrec.config.help import EXAMPLES
from imgrec.errors import ConfigError

HAND = slurmscript.template_file().read_text()


def printed(capsys, *words):
    assert main(["slurm", "dry_run=true", *words]) == 0
    return capsys.readouterr().out


def options(text):
    """#SBATCH options as sbatch reads them: quotes protect, an unquoted # ends the line."""
    lines = [
        shlex.split(line.removeprefix("#SBATCH "), comments=True) for line in text.splitlines() if line.startswith("#SBATCH")
    ]
    assert all(len(line) == 1 for line in lines)
    return {name: value for name, _, value in (line[0].partition("=") for line in lines)}


def test_only_options_and_words_differ_from_the_script_for_hands(capsys):
    text = printed(capsys, "nodes=2", "gpus_per_node=4", "time=8h", "requeue_on_failure=3", "--", "model=vgg", "optim.lr=0.1")
    changed = set(text.splitlines()) - set(HAND.splitlines())
    body = {line for line in changed if not line.startswith("#")}
    assert body == {"requeue_on_failure=3", f"python={sys.executable}", "words=(model=vgg optim.lr=0.1)"}
    gone = [line for line in HAND.splitlines() if line not in text.splitlines() and not line.startswith("#")]
    assert gone == [
        "requeue_on_failure=0 # times that a run that failed is started again",
        "python=.venv/bin/python",
        "[[ -x $python ]] || python=python3",
        'words=("$@")',
    ]
    same = {"requeue", "open-mode", "signal"}
    assert {f"--{name}": options(HAND)[f"--{name}"] for name in same}.items() <= options(text).items()


def test_every_key_has_its_option(capsys):
    words = [
        "nodes=2",
        "gpus_per_node=3",
        "cpus_per_task=5",
        "memory=64G",
        "time=1d12h",
        "partition=p",
        "account=a",
        "qos=q",
        "constraint=c",
        "signal_s=30",
    ]
    text = printed(
        capsys,
        *words,
        "job_name=my job",
        "mail=me@here",
        "extra=--exclusive --comment='a b'",
        "--",
        "batch_size=66",
        "runs_dir=/r/50%",
    )
    assert options(text) == {
        "--nodes": "2",
        "--ntasks-per-node": "3",
        "--gpus-per-node": "3",
        "--cpus-per-task": "5",
        "--mem": "64G",
        "--time": "1-12:00:00",
        "--partition": "p",
        "--account": "a",
        "--qos": "q",
        "--constraint": "c",
        "--signal": "USR1@30",
        "--job-name": "my job",
        "--mail-user": "me@here",
        "--mail-type": "END,FAIL,REQUEUE",
        "--exclusive": "",
        "--comment": "a b",
        "--requeue": "",
        "--open-mode": "append",
        "--output": "/r/50%%/slurm/digits_resnet-%j.log",
        "--chdir": os.getcwd(),
    }


def test_without_gpus_the_option_is_not_there(capsys):
    found = options(printed(capsys, "gpus_per_node=0", "tasks_per_node=4", "--"))
    assert found["--ntasks-per-node"] == "4"
    assert not {"--gpus-per-node", "--time", "--cpus-per-task", "--mem"} & found.keys()


def test_words_with_blanks_and_quotes_reach_the_training_as_they_were(capsys):
    words = ["data=imagefolder", "data.root='my photos'", "name=$HOME"]
    text = printed(capsys, "setup=module load 'a b' && true", "--", *words)
    line = next(line for line in text.splitlines() if line.startswith("words="))
    done = subprocess.run(["bash", "-c", f'{line}; printf "%s\\n" "${{words[@]}}"'], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == words
    assert "module load 'a b' && true" in text.splitlines()


def test_a_sweep_is_an_array_of_its_jobs(capsys):
    sweep = ["-m", "optim.lr=0.1,0.01", "seed=0,1,2"]
    text = printed(capsys, "--", *sweep)
    assert options(text)["--array"] == "0-5"
    assert options(text)["--output"].endswith("-%A_%a.log")
    assert "words=(-m optim.lr=0.1,0.01 seed=0,1,2)" in text.splitlines()
    assert options(printed(capsys, "array=%2", "--", *sweep))["--array"] == "0-5%2"
    assert options(printed(capsys, "array=0,4-5%1", "--", *sweep))["--array"] == "0,4-5%1"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("nodes=2", "no training was given. Type it after --"),
        ("nods=2 --", "'nods=2': there is no key nods. Did you mean nodes?"),
        ("nodes=2 -- model=resnt", "model=resnt: there is no such model. Did you mean resnet?"),
        ("nodes=2 -- nodes=2", "'nodes=2': there is no key nodes."),
        ("model=vgg -- seed=1", "model=vgg belongs to the training. Type it after --"),
        ("-m -- seed=1", "-m belongs to the training."),
        ("time=30 --", "time=30: a number with its unit is needed. Type time=30m for minutes or time=30h for hours."),
        ("time=soon --", "time=soon: a number with its unit is needed. Type 90m, 8h, 1d12h or 8:00:00."),
        ("time=2m --", "signal_s=120, but time=2m is over by then"),
        ("memory=64 --", "memory=64: memory takes a whole number and K, M, G or T. Type memory=64G."),
        ("gpus_per_node=3 --", "batch_size=64 is the global batch, and 3 devices do not divide it. Set batch_size=63 or batch_size=66"),
        ("gpus_per_node=2 tasks_per_node=1 --", "tasks_per_node=1 gpus_per_node=2: each GPU has one process."),
        ("gpus_per_node=2 -- trainer.devices=4", "trainer.devices=4, but tasks_per_node=2. Leave trainer.devices out"),
        ("nodes=2 -- trainer.num_nodes=1", "trainer.num_nodes=1, but nodes=2. Leave trainer.num_nodes out"),
        ("gpus_per_node=2 -- trainer.accelerator=cpu", "trainer.accelerator=cpu, but gpus_per_node=2. Set gpus_per_node=0 tasks_per_node=2."),
        ("gpus_per_node=0 -- trainer.accelerator=gpu", "trainer.accelerator=gpu, but gpus_per_node=0."),
        ("-- resume=false", "resume=false: a job that is queued again has to find its run."),
        ("-- name=a/b", "name=a/b id=None job_name=None: they are words without a slash"),
        ("array=0-1 -- seed=1", "array=0-1, but there is no sweep."),
        ("array=0-2 -- -m seed=1,2", "array=0-2, but the sweep has 2 jobs. Type array=0-1 or less."),
        ("array=x -- -m seed=1,2", "array=x cannot be read. Type numbers of jobs"),
        ("-- -m job=1 seed=1,2", "job=1: each task of the array has its own. Leave it out, and type array=1"),
        ("-- -m seed=1,2 hydra/sweeper=optuna", "a sweep whose jobs depend on results cannot be an array."),
        ("extra=--comment='\"' --", "comment='\"' has a character that sbatch cannot read"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_before_the_queue(capsys, words, says):
    assert main(["slurm", "dry_run=true", *words.split()]) == 2
    assert capsys.readouterr().err.startswith(f"imgrec: {says}")


@pytest.mark.parametrize("example", EXAMPLES["slurm"])
def test_the_trainings_of_the_examples_compose(example):
    words = example.partition("-- ")[2].split()
    assert load_config("train", words) if "-m" not in words else slurm._training(words, None).jobs == 6


@given(st.integers(0, 9), st.integers(0, 23), st.integers(0, 59))
def test_a_time_is_the_same_however_it_is_written(days, hours, minutes):
    total = ((days * 24 + hours) * 60 + minutes) * 60
    clock = slurmscript.sbatch_time(f"{days}d{hours}h{minutes}m")
    assert (
        slurmscript.parse_time(clock)
        == slurmscript.parse_time(f"{days * 1440 + hours * 60 + minutes}m")
        == slurmscript.parse_time(f"{days}-{hours}:{minutes:02}:00")
        == total
    )
    assert re.fullmatch(r"([1-9]-)?\d\d:\d\d:00", clock)
    with pytest.raises(ConfigError):
        slurmscript.parse_time(f"{hours}:{minutes}s")


def test_what_sbatch_says_is_passed_on(tmp_path, monkeypatch, capsys):
    words = ["--", f"runs_dir={tmp_path}/runs", "data=fake"]
    monkeypatch.setenv("PATH", f"{tmp_path}")
    assert main(["slurm", *words]) == 2
    assert "there is no sbatch on this machine" in capsys.readouterr().err
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: x' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    assert main(["slurm", *words]) == 2
    assert "sbatch refused the job: invalid partition specified: x." in capsys.readouterr().err
    assert not list((tmp_path / "runs" / "slurm").iterdir())
    sbatch.write_text("#!/bin/sh\necho '77;cluster'\n")
    assert main(["slurm", *words]) == 0
    said = capsys.readouterr().out
    assert f"tail -F {tmp_path}/runs/slurm/fake_resnet-77.log" in said
    assert "scancel 77" in said
    assert (
        (tmp_path / "runs/slurm/fake_resnet-77.sbatch")
        .read_text()
        .startswith("#!/usr/bin/env bash\n# Written by: imgrec slurm -- ")
    )


def test_a_script_needs_no_torch():
    code = "import sys; from imgrec.cli import main; code = main(['slurm', 'dry_run=true', '--', 'model=vgg']); sys.exit(3 if 'torch' in sys.modules else code)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.fixture
def start(tmp_path):
    """start(said, code) is a start of launch/slurm.sbatch whose srun prints `said` and ends with `code`: (exit code, what scontrol was told, new lines)."""
    log = tmp_path / "log"
    programs = {
        "srun": 'case "$*" in *" true") exit "$NODES_ANSWER" ;; esac; printf "%s" "$SAID"; exit "$CODE"',
        "squeue": 'echo "$STATE"',
        "scontrol": 'echo "$*" >>"$TOLD"; exit "$REQUEUE"',
        "sleep": "",
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def started(said="", code=0, *, state="RUNNING None", requeue=0, nodes_answer=0, failures=0, **more):
        told = tmp_path / "told"
        told.write_text("")
        before = len(log.read_text()) if log.exists() else 0
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}
        fake = {"SAID": said, "CODE": code, "STATE": state, "TOLD": told, "REQUEUE": requeue, "NODES_ANSWER": nodes_answer}
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | {k: str(v) for k, v in (job | fake | more).items()}
        script = HAND.replace("requeue_on_failure=0", f"requeue_on_failure={failures}")
        with log.open("a") as file:
            done = subprocess.run(["bash", "-c", script], env=environment, cwd=tmp_path, stdout=file, stderr=file, check=False)
        return done.returncode, told.read_text().strip(), log.read_text()[before:]

    return started


def stopped(step, *codes):
    said = f"imgrec: stopped by SIGUSR1 at step {step} (epoch 1 of 3); saved. Start the same command again to go on.\n"
    return said + "".join(f"srun: error: n1: task {rank}: {code}\n" for rank, code in enumerate(codes))


STOPPED, KILLED = "Exited with exit code 75", "Killed"


def test_a_stopped_job_is_requeued_and_a_finished_one_is_not(start):
    assert start()[:2] == (0, "")
    assert start(stopped(20, STOPPED), 75)[:2] == (75, "requeue 7")
    assert start(stopped(30, STOPPED, KILLED), 137)[:2] == (75, "requeue 7")  # one that was slow to end, after all had saved
    assert start(stopped(40, STOPPED), 75, state="COMPLETING TimeLimit")[1] == "requeue 7"
    assert start(stopped(50, STOPPED), 75, state="COMPLETING None")[1] == ""  # scancel, or SLURM's own requeue
    assert start(stopped(60, STOPPED), 75, SLURM_ARRAY_JOB_ID=7, SLURM_ARRAY_TASK_ID=3)[1] == "requeue 7_3"


def test_what_failed_first_is_what_happened(start):
    first = "srun: error: n1: tasks 0-1: Exited with exit code 2\nsrun: error: n2: task 2: Killed\n"
    code, told, said = start(first, 137)
    assert (code, told) == (2, "")
    assert " was refused, see above" in said
    code, told, said = start(
        "srun: error: n2: task 2: Exited with exit code 1\nsrun: error: n1: task 0: Exited with exit code 75\n", 75
    )
    assert (code, told) == (1, "")
    assert " failed with code 1, see above" in said
    assert start("srun: error: n1: task 1: Killed\nsrun: error: n1: task 0: Exited with exit code 75\n", 137)[0] == 137


def test_failures_are_started_again_as_often_as_was_asked_for(start):
    found = [start("", 1, failures=2) for _ in range(3)]
    assert [(code, told) for code, told, _ in found] == [(1, "requeue 7"), (1, "requeue 7"), (1, "")]
    assert "is started again (2 of 2): back into the queue" in found[1][2]


def test_a_lost_node_is_no_failure_of_the_run(start):
    code, told, said = start("", 1, nodes_answer=1)
    assert (code, told) == (1, "requeue 7")
    assert "has lost a node: back into the queue" in said
    assert start("", 1, nodes_answer=1, state="COMPLETING NodeFail")[1] == ""  # SLURM knows, and requeues


def test_three_starts_without_a_step_are_enough(start):
    assert [start(stopped(20, STOPPED), 75)[1] for _ in range(3)] == ["requeue 7"] * 3
    code, told, said = start(stopped(20, STOPPED), 75)
    assert (code, told) == (75, "")
    assert "came no further in 3 starts, given up" in said


def test_steps_between_starts_are_progress(start):
    assert {start(stopped(step, STOPPED), 75)[1] for step in (9, 20, 20, 20, 100, 100, 101)} == {"requeue 7"}


def test_a_requeue_that_is_not_allowed_says_how_to_go_on(start):
    code, told, said = start(stopped(20, STOPPED), 75, requeue=1)
    assert (code, told.splitlines()) == (75, ["requeue 7"] * 5)
    assert "could not be requeued. To go on: sbatch the same again, with id=7" in said
