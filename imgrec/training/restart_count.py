"""How many starts of a SLURM job made no progress, and how many failed: RUN_DIR/slurm-JOB.json. Imports no torch.

launch/slurm.sbatch records the end of each start here, and requeues the job or not by the number that is returned.
"""

import json
import pickletools
import zipfile
from pathlib import Path

from imgrec.errors import ExitCode
from imgrec.files import atomic_write
from imgrec.paths import CHECKPOINTS, LAST

INTEGERS = ("BININT1", "BININT2", "BININT", "LONG1")  # opcodes of pickle protocol 2, which torch.save writes


def count_start(run_dir: Path, job: str, code: int) -> int:
    """Record that a start of `job` ended with `code`. After 75 it returns the idle starts in a row, else the failures.

    `run_dir` is the directory of a run, or of a sweep, whose step is the sum over its runs.
    """
    file, stopped = run_dir / f"slurm-{job}.json", code == ExitCode.STOPPED
    count: dict[str, int] = json.loads(file.read_text()) if file.exists() else {"step": 0, "idle": 0, "failures": 0}
    checkpoints = [*run_dir.glob(f"{CHECKPOINTS}/{LAST}"), *run_dir.glob(f"*/{CHECKPOINTS}/{LAST}")]
    step = sum(map(saved_step, checkpoints))
    if step > count["step"]:
        count |= {"step": step, "idle": 0}
    elif stopped:
        count["idle"] += 1
    count["failures"] += int(not stopped)
    run_dir.mkdir(parents=True, exist_ok=True)  # it does not exist if the training failed before creating it
    atomic_write(file, json.dumps(count))
    return count["idle" if stopped else "failures"]


def saved_step(checkpoint: Path) -> int:
    """The number of optimizer steps in a checkpoint; 0 for a file that does not exist or is damaged.

    It is the first integer after "global_step" in the pickle. torch.load would import torch first, which takes
    seconds, and a minute from a slow file system: SLURM may have ended the job by then.
    """
    try:
        with zipfile.ZipFile(checkpoint) as records:
            name = next(name for name in records.namelist() if name.endswith("/data.pkl"))
            opcodes = pickletools.genops(records.read(name))
        next(value for _, value, _ in opcodes if value == "global_step")
        return next(value for opcode, value, _ in opcodes if opcode.name in INTEGERS and isinstance(value, int))
    except Exception:  # zipfile and pickletools have many kinds
        return 0
