"""What all tests share."""

from hypothesis import settings

# A busy machine is no fault of the code: pytest's --durations shows what is slow.
settings.register_profile("imgrec", deadline=None)
settings.load_profile("imgrec")
