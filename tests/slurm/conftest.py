"""A SLURM cluster of two nodes on this machine, for as long as the tests run."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import pytest
from jobs import HERE, SCRIPT, Cluster

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "unshare")
PACKAGES = "slurmctld slurmd slurm-client munge iproute2 procps util-linux"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("a SLURM cluster on this machine needs root, to make namespaces")
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        pytest.skip(f"{', '.join(missing)} not found. Type: apt-get install {PACKAGES}")
    state = tempfile.mkdtemp(prefix="imgrec-slurm-")  # a socket's path must be short
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "IMGREC_"))}
    environment |= {
        "SLURM_CLUSTER_DIR": state,
        "PATH": f"{state}/bin:{os.environ['PATH']}",
        "PYTHONPATH": f"{HERE}:{HERE.parent.parent}",  # slow.py, and the imgrec of this checkout
        "IMGREC_ALLOW": "slow",
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run([SCRIPT, "up", "2"], env=environment, check=True, capture_output=True)
    try:
        yield Cluster(environment, tmp_path_factory.mktemp("shared"))
    finally:
        subprocess.run([SCRIPT, "down"], env=environment, check=True, capture_output=True)
        shutil.rmtree(state)
