"""The command line: `imgrec COMMAND key=value ...`, the same as `python -m imgrec.COMMAND key=value ...`."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from imgrec import __version__
from imgrec.config.compose import load_config
from imgrec.config.help import help_text
from imgrec.distributed import signals
from imgrec.distributed.process_group import error_line
from imgrec.distributed.world import world
from imgrec.errors import UNWRITABLE, ConfigError, Died, ExitCode, ImgrecError, Stopped, did_you_mean
from imgrec.sweeps.grid import is_sweep

COMMANDS = {
    "train": "train a classifier and test it",
    "evaluate": "figures of a checkpoint on any split or another folder",
    "predict": "classes and probabilities of files and folders",
    "lr_find": "suggest a learning rate and draw its curve",
    "models": "list the networks that can be selected",
    "slurm": "submit a training to a cluster's queue",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. An error of the user is one line on stderr; IMGREC_DEBUG=1 shows the traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(_usage())
            return 0
        if argv[0] == "--version":
            print(f"imgrec {__version__}")
            return 0
        return _dispatch(argv[0], argv[1:])
    except ImgrecError as error:
        if os.environ.get("IMGREC_DEBUG") == "1":
            raise
        if (line := error_line(error)) is not None:
            print(f"imgrec: {line}", file=sys.stderr)
        return ExitCode.REFUSED
    except OSError as error:
        if error.errno not in UNWRITABLE or os.environ.get("IMGREC_DEBUG") == "1":
            raise
        file = error.filename or "a file"
        print(f"imgrec: {file} cannot be written: {error.strerror}. Fix that and start the same command again.", file=sys.stderr)
        return ExitCode.REFUSED
    except Stopped as stopped:
        if world().rank == 0:  # the others stopped with it
            print(f"imgrec: {stopped}", file=sys.stderr)
        return ExitCode.STOPPED
    except Died as died:
        print(f"imgrec: {died}", file=sys.stderr)
        return ExitCode.FAILED
    except KeyboardInterrupt:
        if world().rank == 0:
            print("imgrec: interrupted. Start the same command again.", file=sys.stderr)
        return ExitCode.INTERRUPTED


def _dispatch(command: str, argv: list[str]) -> int:
    if command not in COMMANDS:
        raise ConfigError(
            f"{command}: there is no such command.{did_you_mean(command, list(COMMANDS))} There are: {', '.join(COMMANDS)}."
        )
    if command == "models":
        return int(import_module("imgrec.models.__main__").main(argv))  # its keys stand in no yaml
    own = argv[: argv.index("--")] if "--" in argv else argv  # what follows is for another command
    if {"-h", "--help"} & set(own):
        config_dir, overrides = _config_dir(own)
        print(help_text(command, overrides, config_dir))
        return 0
    return run(command, argv)


def _config_dir(argv: list[str]) -> tuple[str | None, list[str]]:
    """The value of --config-dir, and the other arguments."""
    if "--config-dir" not in argv:
        return None, argv
    option = argv.index("--config-dir")
    if option + 1 == len(argv):
        raise ConfigError(
            "--config-dir needs a folder. Type --config-dir FOLDER that holds your model/, data/, experiment/ yaml."
        )
    return argv[option + 1], argv[:option] + argv[option + 2 :]


def run(command: str, argv: list[str]) -> int:
    """Call the command's module with its overrides."""
    if command == "train":
        signals.install_handlers()  # before the seconds that importing torch takes
    config_dir, argv = _config_dir(argv)
    if command == "train":
        if is_sweep(argv):
            return int(import_module("imgrec.sweeps.run").sweep(argv, config_dir, import_module("imgrec.train").fit))
        import_module("imgrec.train").fit(load_config("train", argv, config_dir))
        return ExitCode.OK
    return int(import_module(f"imgrec.{command}").main(argv, config_dir))


def _usage() -> str:
    lines = [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: imgrec COMMAND key=value ...", "", *lines, "", "imgrec COMMAND --help lists its keys."])


if __name__ == "__main__":
    sys.exit(main())
