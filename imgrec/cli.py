"""The command line: `imgrec COMMAND key=value ...`, the same as `python -m imgrec.COMMAND key=value ...`."""

import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from imgrec import __version__
from imgrec.errors import ConfigError, ExitCode, did_you_mean

try:  # so that Ctrl-C in the fifth of a second that these take ends in a line as well
    from imgrec.config.instantiate import find_allowed_packages
    from imgrec.distributed.command import run_command
    from imgrec.files import nearest_path
    from imgrec.terminal import lenient_streams
except KeyboardInterrupt:
    print("imgrec: interrupted. Start the same command again.", file=sys.stderr)
    sys.exit(ExitCode.INTERRUPTED)

COMMANDS = {
    "train": "train a classifier and test it",
    "extend": "more classes for a trained network, and what became of its old answers",
    "evaluate": "metrics of a checkpoint on any split or another folder",
    "compare": "runs beside one another, and whether one is better than the first",
    "report": "a page and a model card of runs, as a training writes them at its end",
    "soup": "the mean of the weights of runs, as far as it helps on validation, tested as a run",
    "predict": "classes and probabilities of files and folders",
    "serve": "answer over HTTP, with a page to drop images on",
    "export": "a trained network as one file for other programs, with resize and calibration in it",
    "verify": "whether an exported file gives here what it gave when it was written",
    "explain": "maps of what a network looked at, each with a verdict, and its nearest training images",
    "tune": "search good values of its keys, with ready spaces",
    "lr_find": "suggest a learning rate and draw its curve",
    "benchmark": "how fast loader and step are here, and with which settings they are faster",
    "pack": "pack image files into tar shards with an index, which are read faster",
    "check": "find damaged, odd and doubled images of a data set, leaks into its test, and missing classes",
    "models": "list the networks that can be selected",
    "slurm": "submit a training to a cluster's queue",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `argv[0]`, one of COMMANDS, with the other arguments; returns its exit code."""
    find_allowed_packages()
    with lenient_streams():
        return _run(sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
    words = list(argv)
    if words and words[0] in ("help", "-h", "--help") and (words := words[1:]):  # of the command that follows
        words.insert(1, "--help")
    if not words:
        lines = [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
        print("\n".join(["usage: imgrec COMMAND key=value ...", "", *lines, "", "imgrec COMMAND --help lists its keys."]))
        return ExitCode.OK
    if words[0] == "--version":
        print(f"imgrec {__version__}")
        return ExitCode.OK
    name = words[0]

    def command(overrides: list[str], config_dir: str | None) -> int:
        if name not in COMMANDS:
            raise ConfigError(f"{name}: there is no such command.{_near_command(words)} There are: {', '.join(COMMANDS)}.")
        module = f"imgrec.{name}.__main__" if name in ("models", "report", "export") else f"imgrec.{name}"
        return int(import_module(module).main(overrides, config_dir))

    return run_command(name, command, words[1:])


def _near_command(words: Sequence[str]) -> str:
    """What to type instead of words that begin with no command: those of a training, as the first may be its folder, or be near one."""
    name = words[0]
    if "=" in name or Path(name).is_dir():
        return f" Type imgrec train {shlex.join(words)}."
    if near := did_you_mean(name, [*COMMANDS, "--help", "--version"]):
        return near
    folder = nearest_path(name, folder=True)
    return "" if folder is None else f" Type imgrec train {shlex.join([folder, *words[1:]])}."


if __name__ == "__main__":
    sys.exit(main())
