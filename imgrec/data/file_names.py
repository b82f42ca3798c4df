"""What the names of image files say, such as their class, by a regular expression."""

import re
from collections.abc import Sequence

from imgrec.errors import DataError
from imgrec.files import composed


def find_in_names(key: str, pattern: re.Pattern[str], root: str, names: Sequence[str]) -> list[str]:
    """What the pattern finds in each path below `root`: its first group, else all that matches; DataError where that is nothing.

    key: the config key of the pattern, for errors. A million names take about a second.
    """
    group = min(pattern.groups, 1)
    found = [match[group] if (match := pattern.search(name)) else None for name in names]
    texts = [composed(text) for text in found if text]
    if len(texts) < len(names):
        first = next(name for name, text in zip(names, found, strict=True) if not text)
        raise DataError(
            f"data.{key}={pattern.pattern}: it finds nothing in {first} and others, {len(names) - len(texts):,} of {len(names):,} "
            f"images of {root}. Set data.{key} to an expression that fits all of them, or move these images away."
        )
    return texts
