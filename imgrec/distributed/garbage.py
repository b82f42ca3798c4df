"""How often Python looks for objects that refer to each other and to nothing else."""

import gc


def collect_seldom() -> None:
    """Look through the old objects after 100 looks through the younger ones, not after 10; for a process of imgrec's own.

    The imports of a training make a million objects that stay: to look through all of them seven times took 0.8 s of its
    start, of 5 s. Every look through them also copies the memory that forked loader workers share.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, 100)
