#!/usr/bin/env bash
# What `make gpu` runs: the tests that need a GPU, then benchmarks/gpu.py, in 8 minutes at most. It installs nothing into
# the Python that it uses, needs no network, and leaves tests.txt, gpu.json and gpu.txt in OUT.
#   PYTHON=python3    one with torch, torchvision, Lightning and pytest
#   WHEELS=FOLDER     wheels of what that Python lacks (hydra-core, omegaconf, antlr4-python3-runtime, simplejpeg);
#                     unpacked ones are found by PYTHONPATH=FOLDER
#   OUT=gpu-report    where the reports go
# To fill WHEELS on a machine with a network and the same version of Python, for which simplejpeg is compiled:
#   pip wheel --no-deps -w FOLDER hydra-core 'omegaconf<2.4' antlr4-python3-runtime==4.9.3 simplejpeg
set -uo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3} OUT=${OUT:-gpu-report} WHEELS=${WHEELS:-}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ -n "$WHEELS" ]; then
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl || exit 2
fi
# imgrec is read from this folder; a run records its version, which an installation would tell.
"$PYTHON" - "$site" <<'END' || exit 2
import pathlib, sys, tomllib
version = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]["version"]
folder = pathlib.Path(sys.argv[1], f"imgrec-{version}.dist-info")
folder.mkdir()
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: imgrec\nVersion: {version}\n")
END
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} PYTHONUNBUFFERED=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8
# A package that is missing is named now, not by a traceback for each test.
"$PYTHON" - <<'END' || exit 2
import sys
sys.path.append("tests")
try:
    import conftest, processes, timm, torch
    import imgrec.storage.pack
except ModuleNotFoundError as error:
    sys.exit(
        f"make gpu: {sys.executable} has no {error.name}. Set PYTHON to one that has torch, torchvision, Lightning and pytest, "
        "and WHEELS=FOLDER with wheels of what it lacks: the first lines of tests/gpu/run.sh."
    )
if not torch.cuda.is_available():
    sys.exit(f"make gpu: torch {torch.__version__} of {sys.executable} finds no CUDA device. Type it on a machine with a GPU.")
END
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
# Processes share the card: most of a test is the start of its own ones, which take two cores each.
parallel=$("$PYTHON" -c 'import importlib.util as u, os; n = max(1, min(8, os.cpu_count() // 2)); print(f"-n {n} --dist worksteal" if u.find_spec("xdist") else "")')
# Warnings are shown and fail no test: torch warns of set_sync_debug_mode, inductor of TF32, Python 3.12 of forks beside threads.
# shellcheck disable=SC2086
timeout -k 5 235 "$PYTHON" -m pytest -p no:cacheprovider -W default -m gpu tests/gpu $parallel --durations=15 --tb=short 2>&1 | tee "$OUT/tests.txt"
tests=${PIPESTATUS[0]}
timeout -k 5 225 "$PYTHON" benchmarks/gpu.py out="$OUT" seconds=170 2>&1 | tee "$OUT/bench.txt"
bench=${PIPESTATUS[0]}
echo "tests: exit code $tests; benchmarks: exit code $bench (124, 137: cut off by their limit); reports in $OUT"
exit $(( tests > bench ? tests : bench ))
