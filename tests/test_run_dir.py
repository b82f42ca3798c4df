"""Which run directory a command means: the unfinished run of the same config, a finished one to read, or an error that names what differs."""

import errno
import fcntl
import json
import os
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from error_parts import assert_error, assert_refused, raises_error
from hypothesis import given
from hypothesis import strategies as st
from marks import slow_but
from processes import exit_codes
from small_run import SMALL

import imgrec
from imgrec import cli
from imgrec.config.load import load_config
from imgrec.config.schema import LATER_KEYS, run_config
from imgrec.errors import ConfigError, DataError
from imgrec.training.config_difference import differing_keys, listed_differences
from imgrec.training.more_epochs import shorter_run
from imgrec.training.run_dir import RunDir, choose_run_dir


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("IMGREC_DEBUG", "SLURM_JOB_ID", "IMGREC_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def plain():
    return load_config("train", [*SMALL, "name=n"])


@pytest.fixture
def run(plain, tmp_path):
    """run(seed=1) is a RunConfig in tmp_path."""
    return lambda **change: run_config({**plain.to_dict(), "runs_dir": str(tmp_path), **change})


def begin(run, *, saved: bool = True) -> Path:
    """A run that was killed after its first save, or before."""
    folder = choose_run_dir(run)
    with folder.opened(run):
        if saved:
            folder.checkpoints.mkdir(exist_ok=True)
            folder.last.touch()
        return folder.path


def test_a_run_of_an_earlier_version_is_the_same_run(plain) -> None:
    """Its config lacks keys that came later, and has one that was renamed."""
    stored = {key: value for key, value in plain.to_dict().items() if key not in LATER_KEYS} | {"extend": None}
    assert differing_keys(plain, stored) == {}


def test_a_batch_that_was_chosen_for_another_config_is_not_that_of_a_new_run(run) -> None:
    (begin(run(id="a"), saved=False) / "batch.json").write_text("{}")
    for change, kept in (({}, True), ({"seed": 1}, False)):
        folder = choose_run_dir(run(id="a", **change))
        with folder.opened(run(id="a", **change)):
            assert folder.batch.exists() == kept


def refusal(run) -> str:
    with pytest.raises(ConfigError) as error:
        choose_run_dir(run)
    return str(error.value)


def test_the_folder_holds_the_config_that_a_run_is_made_of(run):
    given = run()
    stored = yaml.safe_load((begin(given) / "config.yaml").read_text())
    assert run_config(stored) == given
    assert differing_keys(given, stored) == {}


def test_the_same_command_finishes_the_unfinished_run_and_another_gets_the_next_number(run, tmp_path):
    assert begin(run()) == tmp_path / "n/1"
    assert choose_run_dir(run()) == RunDir(tmp_path / "n/1", "unfinished")
    assert choose_run_dir(run(num_workers=3)).state == "unfinished"  # says how it is computed, not what
    assert choose_run_dir(run(resume=False)) == RunDir(tmp_path / "n/2", "new")
    assert choose_run_dir(run(seed=1)) == RunDir(tmp_path / "n/2", "new")
    (tmp_path / "n/1/result.json").write_text("{}")
    assert choose_run_dir(run()) == RunDir(tmp_path / "n/2", "new")
    (tmp_path / "n/10").mkdir()
    assert choose_run_dir(run()) == RunDir(tmp_path / "n/11", "new")


def test_the_same_command_finds_its_unfinished_run_among_newer_ones(run, tmp_path):
    for number, seed in enumerate((0, 1, 0, 2), 1):
        assert begin(run(seed=seed, resume=False)) == tmp_path / f"n/{number}"
    assert choose_run_dir(run()).path == tmp_path / "n/3"  # the newest of its config
    (tmp_path / "n/3/result.json").write_text("{}")
    assert choose_run_dir(run()) == RunDir(tmp_path / "n/1", "unfinished")
    with choose_run_dir(run()).opened(run()):  # by another process
        assert choose_run_dir(run()) == RunDir(tmp_path / "n/5", "new")
    assert choose_run_dir(run(seed=1)) == RunDir(tmp_path / "n/2", "unfinished")
    assert choose_run_dir(run(resume=False)) == choose_run_dir(run(seed=3)) == RunDir(tmp_path / "n/5", "new")


@pytest.mark.parametrize("other", ["set/", "./set", "set/.", ".//set//"])
def test_a_path_that_is_written_in_another_way_is_the_same(run, tmp_path, other):
    def with_paths(path: str):
        return run(data={**run().data.to_node(), "root": path}, weights=path)

    begin(with_paths("set"))
    assert choose_run_dir(with_paths(other)) == RunDir(tmp_path / "n/1", "unfinished")
    for different in ("sets", "set/../set", "/set", "set/a"):  # `..` leads elsewhere where set is a link
        assert choose_run_dir(with_paths(different)).state == "new"


def test_a_slurm_job_is_its_own_id(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert choose_run_dir(run()) == RunDir(tmp_path / "n/4711", "new")
    begin(run())
    assert choose_run_dir(run()) == RunDir(tmp_path / "n/4711", "unfinished")


def test_a_folder_with_another_config_names_the_keys(run, tmp_path):
    begin(run(id="a"))
    folder = f"{tmp_path}/n/a"
    assert_error(refusal(run(id="a", seed=1)), folder, "seed=1", 0, "another id")
    changed = run(id="a", seed=1, epochs=9, batch_size=8, monitor="val/loss", optim={**run().optim, "lr": 0.5})
    keys = ("batch_size=8", 4, "epochs=9", 1, "monitor=val/loss", "val/accuracy", "2 more keys")
    assert_error(refusal(changed), folder, *keys, "another id")
    assert_error(refusal(run(id="a", resume=False)), "id=a resume=false", folder, "another id", "resume=true")
    assert choose_run_dir(run(id="a")).state == "unfinished"


def test_a_start_that_saved_nothing_binds_no_later_one(run, tmp_path):
    folder = begin(run(id="a", seed=1), saved=False)
    assert choose_run_dir(run(id="a", seed=1)).state == "unfinished"
    assert choose_run_dir(run(id="a", seed=1, resume=False)).state == "new"
    with choose_run_dir(run(id="a", seed=1)).opened(run(id="a", seed=1)):  # by another process, in its first epoch
        assert_error(refusal(run(id="a")), folder, "seed=0", 1, "another id")
    assert begin(run(id="a"), saved=False) == folder
    assert run_config(yaml.safe_load((folder / "config.yaml").read_text())) == run(id="a")
    (folder / "config.yaml").write_bytes(b"")
    assert begin(run(id="a", seed=2)) == folder
    assert_error(refusal(run(id="a")), folder, "seed=0", 2, "another id")


@pytest.mark.parametrize("key", ["name", "id"])
@pytest.mark.parametrize("value", ["a/b", "..", "."])
def test_a_name_is_one_folder(run, key, value):
    assert_error(refusal(run(**{key: value})), f"{key}={value}", f"{key}=NAME")


@pytest.mark.parametrize("key", ["runs_dir", "name", "id"])
def test_a_run_directory_is_utf8(run, key):
    assert_error(refusal(run(**{key: os.fsdecode(b"a\xe4")})), f"{key}=a?", "UTF-8", f"another {key}")


def test_two_processes_never_share_a_folder(run, tmp_path):
    with choose_run_dir(run(id="a")).opened(run(id="a")), raises_error(ConfigError, f"{tmp_path}/n/a", "in use", "id=ID"):
        begin(run(id="a"))
    again = choose_run_dir(run(id="a"))
    with again.opened(run(id="a")), (tmp_path / "n/a/.lock").open() as file:
        assert again.lock is not None
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_a_crash_left_of_a_checkpoint_is_removed_by_the_next_start_alone(run, tmp_path):
    left = tmp_path / "n/a/checkpoints/best.ckpt.unfinished"
    with choose_run_dir(run(id="a")).opened(run(id="a")):
        left.parent.mkdir()
        left.touch()
        with raises_error(ConfigError, f"{tmp_path}/n/a", "in use", "id=ID"):
            begin(run(id="a"))
        assert left.exists()
    begin(run(id="a"))
    assert not left.exists()


def test_a_finished_run_is_read_and_not_trained_again(tmp_path, capsys):
    words = [*SMALL, f"runs_dir={tmp_path}", "name=n", "id=a"]
    result = imgrec.fit(load_config("train", words), quiet=True)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.*")}
    assert imgrec.fit(load_config("train", words), quiet=True) == json.loads(json.dumps(result))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.*")} == before
    assert cli.main(["train", *words, "seed=1"]) == 2
    assert_refused(capsys.readouterr().err, f"{tmp_path}/n/a", "seed=1", 0, "another id")


# What a full disk, an editor or a copy leaves of a file.
CUT = {
    "empty": b"",
    "cut": b'{"summary": ',
    "a list": b"[1]",
    "no text": b"\xff\xfe\x00",
    "deep": b"[" * 300,
    "other": b'{"summary": 5}',
}


def spoil(file: Path, how: str) -> None:
    if how == "a folder":
        file.unlink(missing_ok=True)
        file.mkdir()
    else:
        file.write_bytes(CUT[how])


@pytest.mark.parametrize("how", [*CUT, "a folder"])
def test_a_file_of_a_run_that_is_cut_is_one_line(run, tmp_path, how):
    folder = begin(run())
    spoil(folder / "config.yaml", how)
    found = choose_run_dir(run())
    assert found.path == tmp_path / "n/2"
    if how == "other":
        assert not found.damaged
    else:
        (said,) = found.damaged
        assert_error(said, folder / "config.yaml", f"Remove {folder}", "another id")
        with raises_error(DataError, folder / "config.yaml", f"Remove {folder}", "another id"):
            choose_run_dir(run(id="1"))
    assert choose_run_dir(run(resume=False)).path == tmp_path / "n/2"
    spoil(folder / "result.json", how)
    with raises_error(DataError, folder / "result.json", "Remove it", "finishes the run"):
        RunDir(folder, "finished").result()


def test_runs_that_are_damaged_refuse_no_start(run, tmp_path, capsys):
    """An unfinished one is passed over with a line, and of a finished one nothing is said."""
    words = ["train", *SMALL, f"runs_dir={tmp_path}", "name=n", "logger=none"]
    folder = begin(run())
    spoil(folder / "config.yaml", "empty")
    assert cli.main(words) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert_error(first, "passed over", folder / "config.yaml", f"Remove {folder}")
    assert (tmp_path / "n/2/result.json").exists()
    spoil(tmp_path / "n/2/config.yaml", "empty")
    assert shorter_run(run(epochs=5), tmp_path / "n/3") is None


def test_a_lock_that_is_a_folder_is_one_line(tmp_path, capsys):
    (tmp_path / "n/a/.lock").mkdir(parents=True)
    assert cli.main(["train", *SMALL, f"runs_dir={tmp_path}", "name=n", "id=a"]) == 2
    assert_refused(capsys.readouterr().err, tmp_path / "n/a/.lock", "Is a directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    tmp_path.chmod(0o555)
    assert cli.main(["train", *SMALL, f"runs_dir={tmp_path}/runs"]) == 2
    assert_refused(capsys.readouterr().err, f"{tmp_path}/runs", "Permission denied")


@pytest.mark.parametrize(("code", "size"), slow_but((errno.ESTALE, 1), among=[(errno.EROFS, 2), (errno.ESTALE, 1)]))
def test_a_run_directory_that_cannot_be_made_is_one_line_on_all_ranks(code, size, tmp_path, monkeypatch, capfd):
    """ESTALE: of a network disk."""

    def fail(path, *args):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(os, "mkdir", fail)
    words = [word for word in SMALL if not word.startswith("trainer.devices")]
    assert exit_codes(size, lambda rank: cli.main(["train", *words, f"runs_dir={tmp_path}/r"])) == [2] * size
    assert_refused(capfd.readouterr().err, f"{tmp_path}/r", os.strerror(code), "Set runs_dir=FOLDER")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_file_system_that_holds_no_folders_is_one_line(capsys):
    assert cli.main(["train", *SMALL, "runs_dir=/proc/r"]) == 2
    assert_refused(capsys.readouterr().err, "/proc/r", "No such file or directory", "Set runs_dir=FOLDER")


@given(key=st.sampled_from(["seed", "epochs", "max_device_batch"]), value=st.integers(1, 10**6))
def test_differing_names_the_keys_that_differ_and_no_others(plain, key, value):
    stored = plain.to_dict()
    assert differing_keys(run_config({**stored, key: value}), stored) == (
        {} if value == stored[key] else {key: (value, stored[key])}
    )


def test_a_job_that_is_started_again_waits_for_the_lock_of_its_lost_node(run, monkeypatch):
    again, node = choose_run_dir(run(id="a")), ExitStack()
    node.enter_context(choose_run_dir(run(id="a")).opened(run(id="a")))
    with pytest.raises(ConfigError, match="in use"), again.opened(run(id="a")):
        pass
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr("time.sleep", lambda seconds: node.close())
    with again.opened(run(id="a")):
        assert again.lock is not None


def test_a_file_system_without_locks_keeps_nobody_out(run, without_locks):
    assert (begin(run(id="a")) / "config.yaml").is_file()


def test_values_that_differ_are_said_as_they_are_typed():
    assert listed_differences({"data.window_shards": (2, None), "verbose": (True, [False, None])}) == (
        "data.window_shards=2 here, null there; verbose=true here, [false,null] there"
    )
