"""What a family of networks says when the asked-for member does not exist."""

from collections.abc import Sequence
from difflib import get_close_matches

from imgrec.errors import ConfigError


def check_name(key: str, value: str, names: Sequence[str], *, listing: str) -> None:
    """Like `check_choice` for lists too long to print: names the nearest and the command that lists all."""
    if value not in names:
        near = get_close_matches(value, names, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(f"{key}={value} is not among {len(names)} networks. {hint}`{listing}` lists them.")


def check_patches(name: str, patch: int, image_size: int) -> None:
    """Raises ConfigError unless patches of `patch` pixels tile an image: transformers drop the border in silence."""
    if image_size % patch:
        nearest = max(patch, round(image_size / patch) * patch)
        raise ConfigError(
            f"model {name} cuts pictures into {patch}-pixel patches, which do not tile {image_size} pixels. "
            f"Set data.image_size={nearest}."
        )
