"""Lightning's loggers, continued by a resumed run: the same run in the same place, and no point twice."""

from collections.abc import Mapping

Points = Mapping[str, float]


def new_points(metrics: Points, step: int | None, last_steps: Mapping[str, int]) -> dict[str, float]:
    """The metrics without those that were logged at this step or a later one before the run was interrupted.

    `last_steps`: the last step of each metric at the start of this process. A run resumes from its last checkpoint, so it passes
    some steps again; on the same number of processes with the same values.
    """
    return {name: value for name, value in metrics.items() if step is None or step > last_steps.get(name, -1)}
