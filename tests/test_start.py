"""What a start imports, as none of it may come back unnoticed: tests of times would fail on a busy machine."""

import sys

import pytest
from marks import slow_but
from processes import run_command

# All that takes more than a few milliseconds to import.
HEAVY = {
    *("torch", "torchvision", "torchmetrics", "pytorch_lightning", "lightning_fabric", "tensorboard", "timm", "optuna", "wandb"),
    *("numpy", "scipy", "sklearn", "pandas", "pyarrow", "matplotlib", "PIL", "simplejpeg", "hydra", "omegaconf", "yaml", "rich"),
}
HELP = "from imgrec.cli import main; main(['--help'])"
REFUSED = "from imgrec.cli import main; assert main(['train', 'optim.lrr=1']) == 2"
TRAINING = "imgrec.training.module, imgrec.training.trainer, imgrec.training.step_boundary, imgrec.data.datamodule"
# Code, and the heavy modules that are there after it.
STARTS = {
    "import imgrec": set(),
    HELP: {"rich", "yaml"},
    "from imgrec.cli import main; main(['train', '--help'])": {"rich", "yaml"},
    REFUSED: {"rich", "yaml", "hydra", "omegaconf"},
    "import imgrec; imgrec.config.load('train', ['model=vgg'])": {"yaml", "hydra", "omegaconf"},
    # An unchanged folder is checked again without torch and scipy.
    "import imgrec.check": {"numpy", "rich", "yaml"},
    # Prediction takes no training code: without Lightning and torchmetrics, which imports scipy and matplotlib.
    "import imgrec; imgrec.load": {"torch", "torchvision", "numpy", "PIL", "simplejpeg", "rich", "yaml"},
    # Lightning imports torchmetrics. scikit-learn comes with data that it splits, and Hydra only composes.
    f"import {TRAINING}": {
        *("torch", "torchvision", "torchmetrics", "pytorch_lightning", "lightning_fabric"),
        *("numpy", "scipy", "matplotlib", "PIL", "simplejpeg", "rich", "yaml"),
    },
}  # fmt: skip


# REFUSED imports what load does, and tests/test_bad_input.py has 139 without torch; a command's --help more than that of imgrec.
FAST = [code for code, heavy in STARTS.items() if "torch" not in heavy and code not in (REFUSED, HELP)]


@pytest.mark.parametrize("code", slow_but(*FAST, among=STARTS))
def test_a_start_imports_what_it_needs_and_no_more(code: str) -> None:
    show = f"import sys; print('heavy:', *sorted({HEAVY!r} & {{name.partition('.')[0] for name in sys.modules}}))"
    said = run_command(sys.executable, "-c", f"{code}\n{show}").stdout
    assert set(said.splitlines()[-1].split()[1:]) == STARTS[code]


@pytest.mark.parametrize("words", slow_but("train --help", among=("train --help", "models lenet")))
def test_a_start_looks_through_no_old_objects(words: str) -> None:
    """Which are a million after the imports."""
    code = f"""
import gc
from imgrec.cli import main
young, middle, _ = gc.get_threshold()
main({words.split()})
print(gc.get_threshold() == (young, middle, 100), gc.get_stats()[2]["collections"])
"""
    assert run_command(sys.executable, "-c", code).stdout.splitlines()[-1] == "True 0"


@pytest.mark.parametrize("module", slow_but("imgrec.config.compose", among=["imgrec.config.compose", "imgrec.models.__main__"]))
def test_ctrl_c_while_it_imports_ends_in_one_line(module: str) -> None:
    code = f"""
import sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from imgrec.cli import main
sys.exit(main(["models"]))
"""
    command = run_command(sys.executable, "-c", code)
    assert (command.returncode, command.stdout) == (130, "")
    assert command.stderr == "imgrec: interrupted. Start the same command again.\n"
