"""A command from its arguments to its exit code: its help, its errors, and on several ranks the one that prints them."""

import os
import sys
from collections.abc import Callable, Sequence

from imgrec.config.help import help_text
from imgrec.config.options import conf_dir
from imgrec.config.start_checks import check_temporary_folder
from imgrec.distributed import signals
from imgrec.distributed.garbage import collect_seldom
from imgrec.distributed.process_group import error_line
from imgrec.distributed.world import read_world
from imgrec.errors import (
    MORE_FILES,
    NO_ROOM,
    TOO_MANY_OPEN,
    UNWRITABLE,
    ConfigError,
    Died,
    ExitCode,
    ImgrecError,
    Stopped,
    lacks_memory,
    printable,
    shorten_words,
)
from imgrec.terminal import lenient_streams

Command = Callable[[list[str], str | None], int]  # (overrides, --config-dir) -> exit code


@lenient_streams()
def run_command(name: str, command: Command, argv: Sequence[str]) -> int:
    """Call a command with its arguments and return its exit code. An error of the user is one line on stderr; IMGREC_DEBUG=1 shows the traceback."""
    collect_seldom()
    try:
        config_dir, overrides = _split_config_dir(list(argv))
        own = overrides[: overrides.index("--")] if "--" in overrides else overrides  # the others are of another command
        if {"-h", "--help"} & set(own) and (conf_dir() / f"{name}.yaml").is_file():
            print(help_text(name, own, config_dir))
            return ExitCode.OK
        if "--version" in own:
            from importlib.metadata import version  # imgrec.__version__ is of the package, which imports the commands

            print(f"imgrec {version('imgrec')}")
            return ExitCode.OK
        check_temporary_folder()
        with signals.request_cleared(), signals.endings_raised():
            return command(overrides, config_dir)
    except Stopped as stopped:
        if read_world().rank == 0:  # the others stopped with it
            _print(str(stopped))
        return ExitCode.STOPPED
    except Died as died:
        if (line := error_line(died)) is not None:
            _print(line)
        return ExitCode.FAILED
    except Exception as error:
        if os.environ.get("IMGREC_DEBUG") == "1" or not _print_refusal(error):
            raise
        return ExitCode.REFUSED
    except (signals.Ended, KeyboardInterrupt) as ended:
        if read_world().rank == 0:
            _print(f"{str(ended) or 'interrupted'}. Start the same command again.")
        return ended.exit_code if isinstance(ended, signals.Ended) else ExitCode.INTERRUPTED


def _print_refusal(error: Exception) -> bool:
    """Print the line of an error of the user or of the machine; False for another, of which nothing is printed."""
    line: str | None
    if isinstance(error, ImgrecError):
        line = error_line(error)
    elif isinstance(error, OSError) and error.errno in (*UNWRITABLE, *TOO_MANY_OPEN):
        file = error.filename or "a file"
        written = "written" if error.errno in NO_ROOM else "used"
        fix = MORE_FILES if error.errno in TOO_MANY_OPEN else "Fix that and start the same command again"
        line = printable(f"{file} cannot be {written}: {error.strerror}. {fix}.")
    elif lacks_memory(error):
        line = "there is not enough memory for this command. End what else uses it, or allow more: ulimit -a shows the limits."
    else:
        return False
    if line is not None:
        _print(line)
    return True


def _print(line: str) -> None:
    print(f"imgrec: {shorten_words(line)}", file=sys.stderr)


def _split_config_dir(argv: list[str]) -> tuple[str | None, list[str]]:
    """The value of --config-dir FOLDER or --config-dir=FOLDER, and the other arguments."""
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config-dir=") else [word])]
    if "--config-dir" not in argv:
        return None, argv
    option = argv.index("--config-dir")
    if option + 1 == len(argv):
        raise ConfigError(
            "--config-dir needs a folder. Type --config-dir FOLDER that holds your model/, data/, experiment/ yaml."
        )
    return argv[option + 1], argv[:option] + argv[option + 2 :]
