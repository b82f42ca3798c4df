"""Times with their units, as `time=8h`."""

import re

from imgrec.config.annotations import MOST_DIGITS
from imgrec.errors import ConfigError

SECONDS = (86400, 3600, 60, 1)  # of a day, an hour, a minute


def parse_time(text: str) -> int:
    """'1d12h', '90m', '8:00:00' and '1-12:00:00' in seconds; ConfigError for anything else."""
    for pattern in (r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?", r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)"):
        if 0 < len(text) <= MOST_DIGITS and (match := re.fullmatch(pattern, text)):
            return sum(int(part or 0) * size for part, size in zip(match.groups(), SECONDS, strict=False))
    example = f"time={text}m for minutes or time={text}h for hours" if text.isdecimal() else "time=90m, 8h, 1d12h or 8:00:00"
    raise ConfigError(f"time={text}: expected a number with its unit. Type {example}.")
