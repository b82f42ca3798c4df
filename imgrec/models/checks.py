"""Checks of the names and image sizes of library networks."""

from collections.abc import Sequence
from difflib import get_close_matches

from imgrec.errors import ConfigError


def check_name(key: str, value: str, names: Sequence[str], *, listing: str) -> None:
    """ConfigError unless `value` is one of `names`; it suggests the nearest names and the `listing` command."""
    if value not in names:
        near = get_close_matches(value, names, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(f"{key}={value}: unknown network. {hint}`{listing}` lists {len(names)}.")


def check_patches(name: str, patch: int, image_size: int) -> None:
    """ConfigError unless patches of `patch` pixels tile an image: transformers drop the rest without a warning."""
    if image_size % patch:
        nearest = max(patch, round(image_size / patch) * patch)
        raise ConfigError(
            f"model {name} needs a multiple of its patch size, {patch} pixels, not {image_size}. Set data.image_size={nearest}."
        )
