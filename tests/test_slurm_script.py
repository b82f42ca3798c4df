"""`imgrec slurm` types sbatch's command over launch/slurm.sbatch, refuses what cannot run, and the script requeues what made progress."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from processes import LIMIT_S, run_command
from small_run import SMALL

from imgrec import slurm
from imgrec.cli import main
from imgrec.config.help import EXAMPLES
from imgrec.config.load import load_config
from imgrec.config.options import shipped_file
from imgrec.config.schema import RunConfig
from imgrec.errors import ConfigError
from imgrec.training.restart_count import count_start, saved_step

MANY = "9" * 5000  # more digits than int() reads
SCRIPT = shipped_file(slurm.SCRIPT)


def command(capsys, *argv):
    """What dry_run=true prints, as sbatch gets it: its options, and the script's arguments."""
    assert main(["slurm", "dry_run=true", *argv]) == 0
    where, line = capsys.readouterr().out.splitlines()
    assert where == f"# the script: {SCRIPT}"
    program, *rest = shlex.split(line)
    assert program == "sbatch"
    place = rest.index(str(SCRIPT))
    return {name: value for name, _, value in (option.partition("=") for option in rest[:place])}, rest[place + 1 :]


def test_every_key_has_its_option(capsys):
    keys = [
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
        "requeue_on_failure=3",
        "job_name=my job",
        "mail=me@here",
        "extra=--exclusive --comment='a \"b'",
        "setup=module load 'a b' && true",
    ]
    options, arguments = command(capsys, *keys, "--", "batch_size=66", "runs_dir=/r/50%")
    assert options == {
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
        "--comment": 'a "b',
        "--output": "/r/50%%/slurm/digits_resnet-%j.log",
        "--chdir": os.getcwd(),
    }
    assert arguments == [
        f"python={sys.executable}",
        "setup=module load 'a b' && true",
        "requeue_on_failure=3",
        "batch_size=66",
        "runs_dir=/r/50%",
    ]


def test_an_option_that_is_not_set_is_the_clusters(capsys):
    options, arguments = command(capsys, "gpus_per_node=0", "tasks_per_node=4", "--")
    assert options["--ntasks-per-node"] == "4"
    assert not {"--gpus-per-node", "--time", "--cpus-per-task", "--mem"} & options.keys()
    assert arguments == [f"python={sys.executable}"]


def test_the_script_sets_no_option_that_the_command_line_cannot_take_back():
    """Such as --time or --gpus-per-node, whose absence means the cluster's default."""
    lines = [line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH ")]
    names = [line.partition("=")[0] for line in lines]
    always = ["--job-name", "--nodes", "--ntasks-per-node", "--signal", "--output"]  # typed by imgrec slurm in any case
    assert sorted(names) == sorted([*always, "--requeue", "--open-mode"])


def test_a_sweep_is_an_array_of_its_jobs(capsys):
    sweep = ["-m", "optim.lr=0.1,0.01", "seed=0,1,2"]
    options, arguments = command(capsys, "--", *sweep)
    assert options["--array"] == "0-5"
    assert options["--output"].endswith("-%A_%a.log")
    assert arguments[1:] == sweep
    assert command(capsys, "array=%2", "--", *sweep)[0]["--array"] == "0-5%2"
    assert command(capsys, "array=0,4-5%1", "--", *sweep)[0]["--array"] == "0,4-5%1"


def test_a_worker_of_a_search_is_a_job_of_its_own(tmp_path, monkeypatch, capsys):
    search = ["-m", "--search", "optim.lr=log(1e-3,1e-1)", "trials=3", "data=fake", "name=n", f"runs_dir={tmp_path}"]
    options, arguments = command(capsys, "--", *search)
    assert "--array" not in options
    assert arguments[1:] == search
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 77\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert main(["slurm", "--", *search]) == 0
    assert f"run     {tmp_path}/n/sweep_1\n" in capsys.readouterr().out
    assert slurm.job_run_dir(search, None) == tmp_path / "n" / "sweep_1"


@pytest.mark.parametrize(
    ("argv", "value", "suggestion"),
    [
        ("nodes=2", "no training", "imgrec slurm nodes=2 gpus_per_node=4 -- model=resnet data=mnist"),
        ("nods=2 --", "nods", "Did you mean nodes?"),
        ("nodes=2 -- model=resnt", "model=resnt", "Did you mean resnet?"),
        ("nodes=2 -- nodes=2", "nodes=2", "no key nodes"),
        ("model=vgg -- seed=1", "model=vgg", "after --: imgrec slurm KEY=VALUE ... -- model=vgg ..."),
        ("-m -- seed=1", "-m", "after --"),
        ("time=30 --", "time=30", "time=30m for minutes or time=30h for hours"),
        ("time=soon --", "time=soon", "time=90m, 8h, 1d12h or 8:00:00"),
        ("time=2m --", "signal_s=120, but time=2m", "a longer time, or a smaller signal_s"),
        ("memory=64 --", "memory=64", "memory=64G"),
        ("gpus_per_node=3 --", "batch_size=64", "batch_size=63 or batch_size=66"),
        ("gpus_per_node=2 tasks_per_node=1 --", "tasks_per_node=1, but gpus_per_node=2", "gpus_per_node=1"),
        ("gpus_per_node=2 -- trainer.devices=4", "trainer.devices=4, but tasks_per_node=2", "Leave trainer.devices out"),
        ("nodes=2 -- trainer.num_nodes=1", "trainer.num_nodes=1, but nodes=2", "Leave trainer.num_nodes out"),
        ("gpus_per_node=2 -- trainer.accelerator=cpu", "trainer.accelerator=cpu, but gpus_per_node=2", "gpus_per_node=0 tasks_per_node=2"),
        ("gpus_per_node=0 -- trainer.accelerator=gpu", "trainer.accelerator=gpu, but gpus_per_node=0", "gpus_per_node=1"),
        ("-- resume=false", "resume=false", "Leave it out"),
        ("-- name=a/b", "name=a/b", "runs_dir=FOLDER"),
        ("-- name=..", "name=..", "runs_dir=FOLDER"),
        ("-- id=..", "id=..", "runs_dir=FOLDER"),
        ("job_name=a/b --", "job_name=a/b", "without a slash"),
        ("job_name=.. --", "job_name=..", "without a slash"),
        ("array=0-1 -- seed=1", "array=0-1", "-- -m optim.lr=0.1,0.01"),
        ("array=0-2 -- -m seed=1,2", "array=0-2, but the sweep has 2 jobs", "array=0-1"),
        ("array=1 -- -m seed=1", "-m: no key has several values", "leave -m out"),
        ("array=x -- -m seed=1,2", "array=x", "array=0-7, 0,3,5 or 0-1%4"),
        (f"array={MANY} -- -m seed=1,2", "but the sweep has 2 jobs", "array=0-1"),
        (f"time={MANY}h -- seed=1", "time=9", "time=90m, 8h"),
        ("-- -m job=1 seed=1,2", "job=1", "array=1"),
        ("nodes=2 -- --search seed=1,2 trials=3", "nodes=2", "once for each worker"),
        ("gpus_per_node=2 -- --search seed=1,2 trials=3", "tasks_per_node=2", "once for each worker"),
        ("array=0-1 -- --search seed=1,2 trials=3", "array=0-1", "-- -m optim.lr=0.1,0.01"),
        ("extra=exclusive --", "extra=exclusive", 'extra="--exclusive'),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_before_it_waits_in_the_queue(capsys, argv, value, suggestion):
    assert main(["slurm", "dry_run=true", *argv.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("imgrec: ")
    assert error.count("\n") == 1
    assert value in error
    assert suggestion in error


@pytest.mark.parametrize("example", EXAMPLES["slurm"])
def test_the_trainings_of_the_examples_compose(example):
    words = example.partition("-- ")[2].split()
    assert load_config("train", words) if "-m" not in words else slurm._training(words, None).jobs == 6


@given(st.integers(0, 9), st.integers(0, 23), st.integers(0, 59))
def test_a_time_is_the_same_however_it_is_written(days, hours, minutes):
    total = ((days * 24 + hours) * 60 + minutes) * 60
    clock = slurm.sbatch_time(f"{days}d{hours}h{minutes}m")
    assert (
        slurm.parse_time(clock)
        == slurm.parse_time(f"{days * 1440 + hours * 60 + minutes}m")
        == slurm.parse_time(f"{days}-{hours}:{minutes:02}:00")
        == total
    )
    assert re.fullmatch(r"([1-9]-)?\d\d:\d\d:00", clock)
    with pytest.raises(ConfigError):
        slurm.parse_time(f"{hours}:{minutes}s")


def test_what_is_submitted_is_what_dry_run_prints(tmp_path, monkeypatch, capsys):
    argv = ["nodes=2", "setup=module load 'a b'", "--", f"runs_dir={tmp_path}/runs", "data=fake", "name=$HOME"]
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >{tmp_path}/argv\necho '77;cluster'\n")
    sbatch.chmod(0o755)
    options, arguments = command(capsys, *argv)
    typed = [*(f"{name}={value}" for name, value in options.items()), str(SCRIPT), *arguments]
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert main(["slurm", *argv]) == 0
    assert (tmp_path / "argv").read_text().splitlines() == ["--parsable", *typed]
    record = tmp_path / "runs" / "slurm" / "$HOME-77.sh"
    assert shlex.split(record.read_text()) == ["sbatch", *typed]
    printed = capsys.readouterr().out
    assert f"tail -F '{tmp_path}/runs/slurm/$HOME-77'.log" in printed
    assert f"command {record}" in printed
    assert "scancel 77" in printed


def test_an_error_of_sbatch_is_passed_on(tmp_path, monkeypatch, capsys):
    argv = ["--", f"runs_dir={tmp_path}/runs", "data=fake"]
    monkeypatch.setenv("PATH", f"{tmp_path}")
    assert main(["slurm", *argv]) == 2
    assert "sbatch is not available" in capsys.readouterr().err
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: x' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    assert main(["slurm", *argv]) == 2
    assert "invalid partition specified: x" in capsys.readouterr().err
    assert not list((tmp_path / "runs" / "slurm").iterdir())


@pytest.mark.slow
def test_neither_submitting_nor_counting_imports_torch(tmp_path):
    lines = [
        "import sys; from imgrec.cli import main",
        "main(['slurm', 'dry_run=true', '--', 'model=vgg'])",
        f"main(['slurm', '--ended', '75', 'runs_dir={tmp_path}'])",
        "sys.exit('torch' in sys.modules)",
    ]
    environment = os.environ | {"SLURM_JOB_ID": "7"}
    done = run_command(sys.executable, "-c", "\n".join(lines), env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "1"


# launch/slurm.sbatch with pretended programs of SLURM


@pytest.fixture
def start(tmp_path):
    """start(printed, code) is a start of launch/slurm.sbatch whose srun prints `printed` and ends with `code`.

    It returns (exit code, what scontrol was told, new lines of the log). The pretended Python prints `count`, or fails.
    """
    log = tmp_path / "log"
    programs = {
        "srun": 'case "$*" in *" true") exit "$NODES_ANSWER" ;; esac; printf "%s" "$PRINTED"; exit "$CODE"',
        "squeue": 'echo "$STATE"',
        "scontrol": 'echo "$*" >>"$TOLD"; exit "$REQUEUE"',
        "python": f'printf "%s\\n" "$@" >{tmp_path}/counted; [ -n "$COUNT" ] && echo "$COUNT"',
        "sleep": "",
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def started(
        printed="", code=0, *, arguments=(), python=None, state="RUNNING None", requeue=0, nodes_answer=0, count=0, **more
    ):
        told = tmp_path / "told"
        told.write_text("")
        before = len(log.read_text()) if log.exists() else 0
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}
        pretended = {"PRINTED": printed, "CODE": code, "STATE": state, "TOLD": told, "REQUEUE": requeue, "COUNT": count}
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NODES_ANSWER": str(nodes_answer)}
        environment |= {key: str(value) for key, value in (job | pretended | more).items()}
        argv = ["bash", str(SCRIPT), f"python={python or tmp_path / 'python'}", *arguments]
        with log.open("a") as file:  # not run_command: the script reads the file that its output goes to
            done = subprocess.run(argv, env=environment, cwd=tmp_path, stdout=file, stderr=file, check=False, timeout=LIMIT_S)
        return done.returncode, told.read_text().strip(), log.read_text()[before:]

    return started


def ended(*codes):
    """What srun prints of its tasks."""
    return "".join(f"srun: error: n1: task {rank}: {code}\n" for rank, code in enumerate(codes))


STOPPED, KILLED = "Exited with exit code 75", "Killed"


def test_the_settings_of_the_script_come_first_and_the_training_gets_the_others(start, tmp_path):
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "<%s>\\n" "$SETUP" "$@"\n')
    arguments = ["data=imagefolder", "data.root='my photos'", "name=$HOME", "setup=later"]
    log = start(arguments=["setup=export SETUP='a b' && true", *arguments])[2]
    expected = ["a b", *("-", str(tmp_path / "python"), "-m", "imgrec.train"), *arguments]
    found = re.findall("<(.*)>", log)
    assert found[0] == expected[0]
    assert found[-len(expected) + 1 :] == expected[1:]
    assert not {"python", "setup", "requeue_on_failure"} & RunConfig.__dataclass_fields__.keys()


def test_a_file_that_setup_sources_does_not_see_the_arguments(start, tmp_path):
    (tmp_path / "setvars.sh").write_text('echo "setvars: $#"\n')
    assert "setvars: 0\n" in start(arguments=["setup=source ./setvars.sh", "seed=1"])[2]


def test_a_stopped_job_is_requeued_and_a_finished_one_is_not(start):
    assert start()[:2] == (0, "")
    assert start(ended(STOPPED), 75)[:2] == (75, "requeue 7")
    assert start(ended(STOPPED, KILLED), 137)[:2] == (75, "requeue 7")  # one that was slow to end, after all had saved
    assert start(ended(STOPPED), 75, state="COMPLETING TimeLimit")[1] == "requeue 7"
    assert start(ended(STOPPED), 75, state="COMPLETING None")[1] == ""  # scancel, or SLURM's own requeue
    assert start(ended(STOPPED), 75, SLURM_ARRAY_JOB_ID=7, SLURM_ARRAY_TASK_ID=3)[1] == "requeue 7_3"


def test_the_first_exit_code_is_the_cause(start):
    first = "srun: error: n1: tasks 0-1: Exited with exit code 2\nsrun: error: n2: task 2: Killed\n"
    code, told, log = start(first, 137)
    assert (code, told) == (2, "")
    assert " was refused, see above" in log
    code, told, log = start(
        "srun: error: n2: task 2: Exited with exit code 1\nsrun: error: n1: task 0: Exited with exit code 75\n", 75
    )
    assert (code, told) == (1, "")
    assert " failed with code 1, see above" in log
    assert start("srun: error: n1: task 1: Killed\nsrun: error: n1: task 0: Exited with exit code 75\n", 137)[0] == 137


def test_a_failure_is_requeued_as_often_as_the_setting_says(start, tmp_path):
    starts = [start("", 1, arguments=["requeue_on_failure=2"], count=count) for count in (1, 2, 3)]
    assert [(code, told) for code, told, _ in starts] == [(1, "requeue 7"), (1, "requeue 7"), (1, "")]
    assert "is started again (2 of 2): requeued" in starts[1][2]
    assert start("", 1, arguments=["requeue_on_failure=2"], count="")[1] == ""  # Python itself is broken there
    (tmp_path / "counted").unlink()
    assert start("", 1)[:2] == (1, "")
    assert not (tmp_path / "counted").exists()


def test_a_lost_node_is_no_failure_of_the_run(start):
    code, told, log = start("", 1, nodes_answer=1)
    assert (code, told) == (1, "requeue 7")
    assert "has lost a node: requeued" in log
    assert start("", 1, nodes_answer=1, state="COMPLETING NodeFail")[1] == ""  # SLURM knows, and requeues


def test_three_starts_without_progress_are_enough(start):
    assert [start(ended(STOPPED), 75, count=count)[1] for count in (0, 1, 2)] == ["requeue 7"] * 3
    code, told, log = start(ended(STOPPED), 75, count=3)
    assert (code, told) == (75, "")
    assert "made no progress in 3 starts" in log
    code, told, log = start(ended(STOPPED), 75, count="")
    assert (code, told) == (75, "")
    assert "cannot be counted" in log
    assert "submit the same with id=7" in log


def test_what_is_counted_is_the_start_of_this_training(start, tmp_path):
    start(ended(STOPPED), 75, arguments=["requeue_on_failure=2", "seed=1", "name=a b"])
    assert (tmp_path / "counted").read_text().splitlines() == ["-m", "imgrec.slurm", "--ended", "75", "seed=1", "name=a b"]
    start(ended(STOPPED), 75, arguments=["-m", "seed=1,2"], SLURM_ARRAY_JOB_ID=7, SLURM_ARRAY_TASK_ID=1)
    assert (tmp_path / "counted").read_text().splitlines()[3:] == ["75", "job=1", "id=sweep_7", "-m", "seed=1,2"]


def test_a_requeue_that_is_not_allowed_says_how_to_resume(start):
    code, told, log = start(ended(STOPPED), 75, requeue=1)
    assert (code, told.splitlines()) == (75, ["requeue 7"] * 5)
    assert "could not be requeued" in log
    assert "submit the same with id=7" in log


@pytest.mark.slow
def test_the_script_and_the_count_together(start, tmp_path):
    """A job that never gets to its first save: it is given up at its third start, as a file in the run directory knows."""
    starts = [start(ended(STOPPED), 75, python=sys.executable, arguments=["data=fake", "name=n"]) for _ in range(3)]
    assert [told for _, told, _ in starts] == ["requeue 7", "requeue 7", ""], starts
    assert "made no progress in 3 starts" in starts[2][2]
    assert (tmp_path / "runs" / "n" / "7" / "slurm-7.json").is_file()


@pytest.mark.parametrize("name", slow_but("SIGTERM", "SIGHUP", among=["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"]))
def test_a_signal_that_comes_while_python_exits_does_not_kill_the_process(name):
    """Modules are deleted after Python has restored the default handlers."""
    lines = [
        "import os, signal",
        "from imgrec.distributed import signals",
        "signals.install_handlers()",
        "class Late:",
        f"    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.{name}): kill(pid, number); print('alive')",
        "late = Late()",
    ]
    done = run_command(sys.executable, "-c", "\n".join(lines))
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


# The count of starts


def save(run_dir: Path, step: int) -> None:
    """A checkpoint with the keys, in the order, of Lightning's."""
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    checkpoint = {"epoch": 3, "global_step": step, "state_dict": {"weight": torch.zeros(2)}, "loops": {"global_step": 1}}
    torch.save(checkpoint, run_dir / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("step", [0, 1, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**40])
def test_the_saved_step_is_read_without_torch(tmp_path, step):
    file = tmp_path / "checkpoints" / "last.ckpt"
    assert saved_step(file) == 0
    save(tmp_path, step)
    assert saved_step(file) == torch.load(file, weights_only=True)["global_step"] == step
    file.write_bytes(file.read_bytes()[:100])
    assert saved_step(file) == 0


@pytest.mark.parametrize(
    ("steps", "idle"),
    [
        ((20, 20, 20, 20), [0, 1, 2, 3]),
        ((9, 20, 20, 20, 100, 100, 101), [0, 0, 1, 2, 0, 1, 0]),
        ((None, None, None), [1, 2, 3]),
        ((None, None, 5, 5), [1, 2, 0, 1]),
    ],
)
def test_a_start_that_advanced_the_saved_step_is_progress(tmp_path, steps, idle):
    counts = []
    for step in steps:
        if step is not None:
            save(tmp_path, step)
        counts.append(count_start(tmp_path, "7", 75))
    assert counts == idle


def test_a_sweep_makes_progress_in_any_of_its_runs(tmp_path):
    counts = []
    for run, step in (("0", 20), ("0", 20), ("1", 5), ("2", 1), ("2", 1), ("2", 2)):
        save(tmp_path / run, step)
        counts.append(count_start(tmp_path, "7", 75))
    assert counts == [0, 1, 0, 0, 1, 0]


def test_failures_are_counted_over_all_starts_of_a_job(tmp_path):
    save(tmp_path, 20)
    codes = [1, 75, 137, 75, 1, 75, 75]
    assert [count_start(tmp_path, "7", code) for code in codes] == [1, 1, 2, 2, 3, 3, 4]
    assert count_start(tmp_path, "8", 75) == 0  # another job of the run
    assert count_start(tmp_path, "8", 1) == 1


def test_the_run_directory_of_a_job_is_where_it_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    assert slurm.job_run_dir(["data=fake", "name=n", f"runs_dir={tmp_path}"], None) == tmp_path / "n" / "9"
    assert slurm.job_run_dir(["data=fake", "name=n", f"runs_dir={tmp_path}", "id=4"], None) == tmp_path / "n" / "4"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    sweep = ["job=1", "id=sweep_77", "-m", *SMALL, "model=lenet,simple_cnn", f"runs_dir={tmp_path}"]
    assert main(["train", *sweep]) == 0
    run_dir = slurm.job_run_dir(sweep, None)
    assert (run_dir / "result.json").is_file()
    last = run_dir / "checkpoints" / "last.ckpt"
    assert saved_step(last) == torch.load(last, weights_only=True)["global_step"] == 2
    capsys.readouterr()
    assert main(["slurm", "--ended", "75", *sweep]) == 0
    assert capsys.readouterr().out == "0\n"
    assert (run_dir / "slurm-9.json").is_file()
