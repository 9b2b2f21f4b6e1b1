"""Numbers and settings as people write them, and what a run has cost."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeGuard

from sgenas.report.run_record import RunRecord

NOTHING = "\u2013"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value read from a file is a finite number; ``float`` of a huge integer would raise."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def duration(seconds: float) -> str:
    """Seconds, minutes, or hours and minutes."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def memory(count: float) -> str:
    """Bytes in MB or GB (powers of 1,000)."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def counted(value: float) -> str:
    """A number of things."""
    return f"{value:,.0f}"


def percent(fraction: float) -> str:
    """A fraction in percent, two digits."""
    return f"{100 * fraction:.2f}\u00a0%"


class CostPart(NamedTuple):
    """A key of an epoch row, its heading, its format, and the format of a sentence around it."""

    key: str
    heading: str
    write: Callable[[float], str]
    sentence: str = "{}"


COSTS = (
    CostPart("seconds", "time", duration),
    CostPart("device_seconds", "device time", duration, "{} of device time"),
    CostPart("peak_memory_bytes", "memory", memory, "at most {} of memory"),
    CostPart("forward", "forward passes", counted, "{} forward passes"),
    CostPart("backward", "backward passes", counted, "{} backward passes"),
    CostPart("images", "images", counted, "{} images"),
)


def costs(record: RunRecord) -> dict[str, float]:
    """What the run has cost up to its last finished epoch, by the keys of metrics.jsonl; known parts only."""
    last = record.epochs[-1] if record.epochs else {}
    return {part.key: last[part.key] for part in COSTS if is_number(last.get(part.key))}


def cost(record: RunRecord) -> str:
    """`costs` in one sentence; empty if nothing is known."""
    found = costs(record)
    parts = [part.sentence.format(part.write(found[part.key])) for part in COSTS if part.key in found]
    return f"Cost: {', '.join(parts)}." if parts else ""


def flat_settings(group: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Pairs (name, value) of every setting; names of deeper levels are dotted."""
    rows: list[tuple[str, Any]] = []
    for key, value in group.items():
        if isinstance(value, Mapping) and value:
            rows += flat_settings(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def setting_text(value: Any) -> str:
    """A setting for people: floats have at most 12 digits, so that 0.1 * 0.12 is 0.012."""
    if value is None or value == {}:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, list):
        return ", ".join(setting_text(item) for item in value) or NOTHING
    return str(value)
