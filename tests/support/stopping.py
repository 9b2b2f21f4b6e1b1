"""Stops a run in the middle."""

from collections.abc import Callable


def stop_after(steps: int) -> Callable[[], bool]:
    """What a run is given as `stop`: says so after that many steps."""
    asked = iter(range(1, steps + 1))
    return lambda: next(asked) == steps
