"""The corruptions of ImageNet-C by name; imports no library, so that a misspelt one is refused at once."""

from collections.abc import Sequence

from imgrec.errors import ConfigError, did_you_mean

FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
CORRUPTIONS = tuple(name for names in FAMILIES.values() for name in names)


def corruption_names(words: Sequence[str]) -> list[str]:
    """The corruptions that words name: their own names, families, or true for all. ConfigError for another word."""
    names: list[str] = []
    for word in words:
        if word not in ("true", *FAMILIES, *CORRUPTIONS):
            known = [*FAMILIES, *CORRUPTIONS]
            raise ConfigError(
                f"corruptions={word}: expected true, {', '.join(FAMILIES)}, or one of {', '.join(CORRUPTIONS)}.{did_you_mean(word, known)}"
            )
        names += CORRUPTIONS if word == "true" else FAMILIES.get(word, (word,))
    return [name for name in CORRUPTIONS if name in names]
