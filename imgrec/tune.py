"""Search good values of a training's keys: python -m imgrec.tune model=resnet data=digits trials=20

The search of `imgrec train -m --search` (imgrec.sweeps), over ready spaces (imgrec.sweeps.spaces), from the defaults on. The same
command again resumes it.
"""

import sys
from collections.abc import Sequence

from rich.table import Table

from imgrec.config.schema import run_config
from imgrec.config.start_checks import check_start
from imgrec.distributed import signals
from imgrec.distributed.command import run_command
from imgrec.errors import plural
from imgrec.sweeps.run import check_alone, check_optuna, run_sweep
from imgrec.sweeps.search import UNPRUNED
from imgrec.sweeps.spaces import Tuning, plan_tuning
from imgrec.terminal import Terminal
from imgrec.train import fit, write_sweep_report


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Show the space, and search it; the exit codes of a sweep."""
    signals.install_handlers()
    tuning = plan_tuning(argv, config_dir)
    check_alone("tune", "imgrec tune ... without it")
    check_optuna("tune")
    check_start(run_config(tuning.plan.base))
    show_space(tuning, Terminal())
    return run_sweep(tuning.plan, config_dir, fit, write_sweep_report)


def show_space(tuning: Tuning, terminal: Terminal) -> None:
    """The searched keys with their defaults, what is trained and how often, and how to change, stop and resume that."""
    plan = tuning.plan
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("searched key", "first trial", "values", "space of"):
        table.add_column(name, overflow="fold")
    for row in tuning.keys:
        table.add_row(row.key, row.default or "drawn", row.values, row.origin)
    terminal.say(table)
    each = f"time={plan.base['time']}" if plan.base["time"] else plural(plan.base["epochs"], "epoch")
    pruned = f"; from the {UNPRUNED + 1}th on, one that is worse than the median is pruned (prune=false: none is)"
    pruned *= plan.prune and (plan.trials or 0) > UNPRUNED
    images = f"data={tuning.choices['data']}"
    if (key := {"imagefolder": "root", "shards": "root", "table": "file"}.get(tuning.choices["data"])) is not None:
        images += f" data.{key}={plan.base['data'][key]}"
    terminal.say(f"{plural(plan.trials or 0, 'trial')} of model={tuning.choices['model']} {images}, {each} each{pruned}.")
    first = tuning.keys[0]
    terminal.say(f"A value fixes a key ({first.key}={first.default or 'VALUE'}), and a range replaces or adds one.")
    terminal.say("Ctrl-C saves and stops, and the same command resumes.")


if __name__ == "__main__":
    sys.exit(run_command("tune", main, sys.argv[1:]))
