"""On a real SLURM: whatever happens to a job on its way, it ends with the weights of an undisturbed one."""

import json
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from jobs import HERE, OVER, PATIENCE_S, Cluster, Job, assert_same_run, read
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

ROOT = HERE.parent.parent
STEPS = 21  # an epoch, of 64 of the digits
TRAINING = (
    "--config-dir",
    str(HERE / "conf"),
    "data=digits",
    "model=slow",
    "augment.mixup=0.2",
    "optim=momentum",
    "epochs=8",
    "num_workers=0",
    "logger=none",
    "trainer.accelerator=cpu",
    "callbacks.ema.decay=0.9",
    "trainer.timeout_s=120",
)
TWO = "nodes=2 gpus_per_node=0 tasks_per_node=1"  # a process on each of two nodes
SLOW = "model.seconds=0.2"  # 34 s of training at least


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> Path:
    """The run directory of a job on two nodes that was not interrupted."""
    job = cluster.submit(TWO, *TRAINING)
    job.finished(restarts=0)
    return job.folder


def test_two_nodes_of_two_processes_match_one_process(cluster):
    # No dropout: each process draws its own. Pretended GPUs: counted by SLURM, trained on the CPU.
    arguments = [*TRAINING[:-3], "epochs=2", "model.dense_dropout=0"]
    job = cluster.submit("nodes=2 gpus_per_node=2", *arguments)
    job.finished(restarts=0)
    assert "global batch 64 = 4 devices x 16 x 1" in job.said()
    assert job.said().count("\n    2/2 ") == 1  # one process speaks, in plain lines
    assert not re.search(r"\x1b|\r", job.said())
    cluster.run(sys.executable, "-m", "imgrec.train", *arguments, "trainer.accelerator=cpu", "trainer.devices=1", "id=alone")
    alone, many = read(job.folder.parent / "alone"), read(job.folder)
    assert many["global_step"] == alone["global_step"] == 2 * STEPS
    for name, weights in alone["state_dict"].items():
        torch.testing.assert_close(many["state_dict"][name], weights, rtol=1e-4, atol=1e-5, msg=name)
    results = [json.loads((folder / "result.json").read_text())["test"] for folder in (job.folder.parent / "alone", job.folder)]
    assert results[0]["accuracy"] == results[1]["accuracy"]


def test_requeued_in_the_middle(cluster, undisturbed):
    job = cluster.submit(TWO, *TRAINING, SLOW)
    job.reaches(2)
    job.command("scontrol", "requeue", job.number)
    job.finished(restarts=1)
    assert_same_run(job.folder, undisturbed)


@pytest.mark.parametrize("seconds", [0.0, 0.5, 3.0])
def test_a_signal_that_comes_early_kills_nothing(cluster, undisturbed, seconds):
    """While bash, Python or torch starts."""
    job = cluster.submit(TWO, *TRAINING)
    job.starts(1)
    time.sleep(seconds)
    job.command("scancel", "--signal=USR1", job.number)
    job.finished()
    assert_same_run(job.folder, undisturbed)


@pytest.mark.parametrize("partition", ["low", "lowcancel"])
def test_preempted_by_a_job_of_higher_priority(cluster, undisturbed, partition):
    job = cluster.submit(f"{TWO} partition={partition}", *TRAINING, SLOW)
    job.reaches(2)
    cluster.run("sbatch", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")
    job.finished(restarts=1)
    assert "imgrec: stopped by SIGUSR1 at step " in job.said()
    assert_same_run(job.folder, undisturbed)


def test_out_of_time_again_and_again(cluster, undisturbed):
    # SLURM counts in minutes and may send the signal half a minute early: 45 s to 105 s of each two minutes are for starting and training.
    job = cluster.submit(f"{TWO} time=2m signal_s=15", *TRAINING, "model.seconds=0.9")
    job.finished()
    assert 1 <= int(job.shown()["Restarts"]) == job.said().count(" was stopped and can be resumed: requeued")
    assert 0 < json.loads((job.folder / f"slurm-{job.number}.json").read_text())["step"] < 8 * STEPS
    assert_same_run(job.folder, undisturbed)


@pytest.mark.parametrize("node", ["n1", "n2"])  # the batch shell is on n1
def test_a_node_crashes_and_comes_back(cluster, undisturbed, node):
    job = cluster.submit(TWO, *TRAINING, SLOW, "trainer.save_every_steps=10")
    job.reaches(2)
    cluster.node("crash", node)
    job.wait("back in the queue", lambda: job.shown()["JobState"] in ("PENDING", "REQUEUED"))
    cluster.node("up")
    job.finished()
    assert int(job.shown()["Restarts"]) >= 1
    assert_same_run(job.folder, undisturbed)


def kill_rank_1(cluster: Cluster, signal: str = "KILL") -> None:
    cluster.on("n2", "pkill", f"-{signal}", "-f", "imgrec.train")


def test_a_killed_process_ends_the_job_and_it_says_so(cluster):
    job = cluster.submit(TWO, *TRAINING, SLOW)
    job.reaches(2)
    kill_rank_1(cluster)
    state, code = job.ends()
    assert (state, int(job.shown()["Restarts"])) == ("FAILED", 0)
    assert code not in (0, 2, 75)
    assert re.search(r"^slurm: .* failed with code \d+, see above$", job.said(), re.MULTILINE)
    assert "n2: task 1: Killed" in job.said()


def test_a_process_that_hangs_ends_the_job_and_is_named(cluster):
    job = cluster.submit(TWO, *TRAINING[:-1], SLOW, "trainer.timeout_s=30")
    job.reaches(2)
    kill_rank_1(cluster, "STOP")
    assert job.ends()[0] == "FAILED"
    assert re.search(r"^imgrec: rank 1 on n2 .* 30 s", job.said(), re.MULTILINE)
    assert " failed with code 1, see above" in job.said()


def test_a_killed_process_is_started_again_with_requeue_on_failure(cluster, undisturbed):
    job = cluster.submit(f"{TWO} requeue_on_failure=1", *TRAINING, SLOW, "trainer.save_every_steps=10")
    job.reaches(2)
    kill_rank_1(cluster)
    job.finished(restarts=1)
    assert "is started again (1 of 1): requeued" in job.said()
    assert_same_run(job.folder, undisturbed)


def test_three_starts_without_progress_are_given_up(cluster):
    """Each start is told to stop before its first step is done."""
    job = cluster.submit("gpus_per_node=0", *TRAINING, "model.seconds=5")
    end = time.monotonic() + PATIENCE_S
    while job.shown()["JobState"] not in OVER and time.monotonic() < end:
        cluster.run("sh", "-c", f"scancel --signal=USR1 {job.number} || true")  # it may wait in the queue
        time.sleep(0.3)
    assert job.ends() == ("FAILED", 75), job.said()
    assert int(job.shown()["Restarts"]) == 2
    assert "no progress in 3 starts" in job.said()


def test_a_failure_that_repeats_itself_is_given_up(cluster):
    """Each start is killed; after requeue_on_failure of them the job fails."""
    job = cluster.submit(f"{TWO} requeue_on_failure=1", *TRAINING, SLOW)
    for start in (1, 2):
        job.starts(start)
        job.wait(
            "a process on n2", lambda: cluster.run("sh", "-c", f"'{HERE}/cluster' exec n2 pgrep -f imgrec.train || true").strip()
        )
        kill_rank_1(cluster)
    assert job.ends()[0] == "FAILED"
    assert int(job.shown()["Restarts"]) == 1


def test_cancelled_means_cancelled_and_another_job_resumes_the_run(cluster, undisturbed):
    job = cluster.submit(TWO, *TRAINING, SLOW)
    job.reaches(2)
    job.command("scancel", job.number)
    assert job.ends()[0] == "CANCELLED"
    assert "imgrec: stopped by SIGTERM at step " in job.said()
    assert f"To resume, submit the same with id={job.number}" in job.said()
    again = cluster.submit(TWO, *TRAINING, SLOW, f"id={job.number}")
    again.finished(restarts=0)
    assert again.folder == job.folder
    assert_same_run(job.folder, undisturbed)


def test_an_array_runs_a_sweep_and_a_requeued_task_is_resumed(cluster):
    sweep = [*TRAINING[:-3], "epochs=4", "trainer.accelerator=cpu", "-m", "optim.lr=0.05,0.01"]
    array = cluster.submit("gpus_per_node=0 array=%1", *sweep, SLOW)
    tasks = [array.task(number) for number in (0, 1)]
    tasks[0].reaches(2)
    tasks[0].command("scontrol", "requeue", tasks[0].number)
    for task, restarts in zip(tasks, (1, 0), strict=True):
        task.finished(restarts=restarts)
    for task, lr in zip(tasks, ("0.05", "0.01"), strict=True):
        cluster.run(sys.executable, "-m", "imgrec.train", *sweep[:-2], f"optim.lr={lr}", "trainer.devices=1", f"id=lr_{lr}")
        assert_same_run(task.folder, array.folder.parent / f"lr_{lr}")
    table = cluster.run(sys.executable, "-m", "imgrec.train", *sweep, SLOW, f"id={array.folder.name}", "job=none")
    assert sorted(line.split()[-1] for line in table.splitlines() if re.match(r" +[12]  0\.0", line)) == [
        f"{array.folder.name}/{k}" for k in (0, 1)
    ]


def test_a_worker_of_a_search_is_requeued_and_finishes_it(cluster):
    search = ["-m", "--search", "optim.lr=log(0.01,0.1)", "trials=2", "epochs=2"]
    job = cluster.submit("gpus_per_node=0", *TRAINING, SLOW, *search)
    job.wait("in the first trial", (job.folder / "0" / "checkpoints" / "last.ckpt").exists)
    job.command("scontrol", "requeue", job.number)
    job.finished(restarts=1)
    assert [read(job.folder / trial)["global_step"] for trial in ("0", "1")] == [2 * STEPS, 2 * STEPS]


@pytest.mark.parametrize(
    ("options", "arguments", "says"),
    [
        (["--ntasks-per-node=2"], ["trainer.devices=1"], "trainer.devices=1, but SLURM started 2 tasks"),
        (["--ntasks-per-node=1", "--gpus-per-node=2"], [], "2 GPUs"),
        (["--nodes=2", "--ntasks-per-node=1"], ["trainer.num_nodes=1"], "trainer.num_nodes=1, "),
    ],
)  # fmt: skip
def test_the_options_of_sbatch_must_fit_the_config(cluster, options, arguments, says):
    """The script by hand, with options of sbatch that contradict the config: one line, exit code 2, and no second start."""
    log = cluster.directory / f"refused-{len(list(cluster.directory.glob('refused-*')))}.log"
    command = [
        "sbatch",
        "--parsable",
        f"--chdir={ROOT}",
        f"--output={log}",
        "--cpus-per-task=1",
        *options,
        str(ROOT / "launch" / "slurm.sbatch"),
    ]
    number = cluster.run(*command, f"runs_dir={cluster.directory}/runs", "data=fake", *arguments).strip()
    job = Job(number, log, cluster.directory, cluster.environment)
    assert job.ends() == ("FAILED", 2), job.said()
    assert job.shown()["Restarts"] == "0"
    lines = [line for line in job.said().splitlines() if line.startswith("imgrec: ")]
    assert lines
    assert all(says in line and "#SBATCH --" in line for line in lines)
    assert " was refused, see above" in job.said()


@pytest.mark.parametrize(
    ("options", "starter", "says"),
    [
        (["--ntasks=2", "--nodes=1"], "srun", "#SBATCH --ntasks-per-node=2 instead of --ntasks"),
        (["--ntasks-per-node=2"], "", "srun before python"),
        (["--ntasks=3", "--nodes=2", "--ntasks-per-node=2"], "srun", "#SBATCH --nodes=2 --ntasks-per-node=2"),
    ],
)  # fmt: skip
def test_a_script_of_your_own_must_start_the_processes_as_imgrec_needs_them(cluster, options, starter, says):
    log = cluster.directory / f"own-{len(list(cluster.directory.glob('own-*')))}.log"
    line = f"{starter} {sys.executable} -m imgrec.train runs_dir={cluster.directory}/runs data=fake"
    number = cluster.run("sbatch", "--parsable", f"--output={log}", *options, f"--wrap={line}").strip()
    job = Job(number, log, cluster.directory, cluster.environment)
    assert job.ends() == ("FAILED", 2), job.said()
    assert says in job.said()


def test_the_script_by_hand_trains(cluster):
    log = cluster.directory / "by_hand.log"
    command = [
        "sbatch",
        "--parsable",
        f"--chdir={ROOT}",
        f"--output={log}",
        "--cpus-per-task=1",
        str(ROOT / "launch" / "slurm.sbatch"),
    ]
    arguments = ["data=fake", "model=lenet", "trainer=debug", f"runs_dir={cluster.directory}/runs", "name=by hand"]
    job = Job(cluster.run(*command, *arguments).strip(), log, cluster.directory, cluster.environment)
    job.finished(restarts=0)
    assert (cluster.directory / "runs" / "by hand" / job.number / "result.json").is_file()


def test_an_archive_is_unpacked_on_each_node_first(cluster):
    """Each node has a /dev/shm of its own."""
    photos = cluster.directory / "photos"
    for name, grey in (("dark", 20), ("light", 230)):
        (photos / name).mkdir(parents=True)
        for i in range(12):
            Image.new("L", (16, 16), grey + i).save(photos / name / f"{i}.png")
    cluster.run("tar", "-cf", "photos.tar", "photos")
    setup = f"srun --ntasks=$SLURM_JOB_NUM_NODES --ntasks-per-node=1 tar -xf {cluster.directory}/photos.tar -C /dev/shm"
    arguments = [
        "data=imagefolder",
        "data.root=/dev/shm/photos",
        "data.image_size=16",
        "model=lenet",
        "epochs=1",
        "batch_size=4",
        "logger=none",
    ]
    job = cluster.submit("nodes=2 gpus_per_node=0", *arguments, "trainer.accelerator=cpu", setup=setup)
    job.finished(restarts=0)
    assert not Path("/dev/shm/photos").exists()
    for node in ("n1", "n2"):
        assert cluster.on(node, "ls", "/dev/shm/photos").split() == ["dark", "light"]
