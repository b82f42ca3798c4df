"""launch/slurm.sbatch as a template: its #SBATCH lines with other values, and the spellings that sbatch reads. Imports no torch."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from imgrec.errors import ConfigError

TEMPLATE = "slurm.sbatch"
UNITS = {"d": 86400, "h": 3600, "m": 60}  # seconds
Options = dict[str, str | None]  # of sbatch; None: not given


def template_file() -> Path:
    """launch/slurm.sbatch of a checkout or of an installed wheel."""
    package = Path(__file__).parent
    for found in (package / "launch" / TEMPLATE, package.parent / "launch" / TEMPLATE):
        if found.is_file():
            return found
    raise ConfigError(f"no launch/{TEMPLATE} beside {package}: the installation is incomplete. Install imgrec again.")


def fill_template(text: str, options: Options, *, extra: Sequence[str], body: Mapping[str, str | None], head: str) -> str:
    """A script with other values of its #SBATCH lines, further ones after them, and lines of its body replaced.

    `body` maps the beginning of a line to the line to put there, or None for none. The comment at the head gives way to `head`.
    """
    lines = text.splitlines()
    found = [re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?(\s+#.*)?", line) for line in lines]
    first = next(place for place, match in enumerate(found) if match)
    last = max(place for place, match in enumerate(found) if match)
    filled = [lines[0], f"# {head}"]
    there = set()
    for line, match in zip(lines[first : last + 1], found[first : last + 1], strict=True):
        assert match, f"not an option of sbatch: {line}"
        name = match[1]
        there.add(name)
        if name not in options:
            filled.append(line)
        elif (value := options[name]) is not None:
            option, comment = _option(name, value), (match[3] or "").strip()
            filled.append(f"{option:<{match.end() - len(comment) - 1}} {comment}".rstrip())
    filled += [_option(name, value) for name, value in options.items() if name not in there and value is not None]
    filled += [_option(*option.removeprefix("--").partition("=")[::2]) for option in extra]
    for line in lines[last + 1 :]:
        start = next((start for start in body if line.startswith(start)), None)
        if start is None:
            filled.append(line)
        elif (new := body[start]) is not None:
            filled.append(new)
    return "\n".join(filled) + "\n"


def _option(name: str, value: str) -> str:
    key = name.replace("-", "_")
    if '"' in value or "\\" in value or not value.isprintable():
        raise ConfigError(f"{key}={value!r} has a character that sbatch cannot read in a script. Leave it out.")
    return f"#SBATCH --{name}" + (f"={_protected(value)}" if value else "")


def _protected(value: str) -> str:
    """sbatch takes a # outside quotes for a comment, and a blank for the end."""
    return f'"{value}"' if re.search(r"[\s#']", value) else value


def parse_time(text: str) -> int:
    """'1d12h', '90m', '8:00:00' and '1-12:00:00' in seconds; ConfigError for anything else."""
    short = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?", text)
    long = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
    if text and short:
        return sum(int(part or 0) * size for part, size in zip(short.groups(), UNITS.values(), strict=True))
    if long:
        return sum(int(part or 0) * size for part, size in zip(long.groups(), (*UNITS.values(), 1), strict=True))
    near = (
        f" Type time={text}m for minutes or time={text}h for hours." if text.isdecimal() else " Type 90m, 8h, 1d12h or 8:00:00."
    )
    raise ConfigError(f"time={text}: a number with its unit is needed.{near}")


def sbatch_time(text: str) -> str:
    """A time as sbatch reads it in one way only: DAYS-HH:MM:SS."""
    days, rest = divmod(parse_time(text), UNITS["d"])
    return f"{f'{days}-' if days else ''}{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"


def array_tasks(text: str | None, jobs: int) -> str:
    """What follows --array= for a sweep of `jobs` jobs; ConfigError for a job that there is not."""
    which, percent, most = (text or "").partition("%")
    numbers = [int(number) for number in re.findall(r"\d+", which.partition(":")[0])]
    if not re.fullmatch(r"(\d+(-\d+)?(,\d+(-\d+)?)*)?(%[1-9]\d*)?", text or ""):
        raise ConfigError(
            f"array={text} cannot be read. Type numbers of jobs and how many at once: 0-7, 0,3,5 or 0-{jobs - 1}%4."
        )
    if any(number >= jobs for number in numbers):
        raise ConfigError(f"array={text}, but the sweep has {jobs} jobs. Type array=0-{jobs - 1} or less.")
    return (which or f"0-{jobs - 1}") + percent + most
