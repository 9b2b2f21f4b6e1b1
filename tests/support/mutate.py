"""Damages files at random: single bytes, whole stretches, and JSON values for others of any kind."""

import json
import random
from typing import Any

STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.5, -0.0, 1e308, -1e-320),
    *(float("nan"), float("inf"), "", "x", "../../etc/passwd", "\x00", "\ud800", "a" * 5000, [], {}, [[]]),
    *([None] * 3, {"": None}, {"format": 1}, [0] * 1000, "__import__('os')", "none", "darts", "normal"),
)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """`content` with one to four changes; what is JSON is changed as JSON half of the time."""
    if draw.random() < 0.5:
        try:
            value = json.loads(content)
        except ValueError:
            pass
        else:
            for _ in range(draw.randint(1, 3)):
                value = _changed(value, draw)
            return json.dumps(value).encode("utf-8", errors="surrogatepass")
    found = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(found) + 1)
        kind = draw.randrange(5)
        if kind == 0 and found:
            found[min(place, len(found) - 1)] = draw.randrange(256)
        elif kind == 1:
            del found[place : place + draw.choice([1, 2, 7, 100, len(found)])]
        elif kind == 2:
            found[place:place] = draw.randbytes(draw.choice([1, 2, 8, 300]))
        elif kind == 3:
            other = draw.randrange(len(found) + 1)
            found[place:place] = found[other : other + draw.choice([1, 4, 60])]
        else:
            # lengths and sizes stand in such words
            found[place : place + 4] = draw.choice([0, 1, 2**31 - 1, 2**32 - 1]).to_bytes(4, "little")
    return bytes(found)


def _changed(value: Any, draw: random.Random) -> Any:
    """A copy with one value somewhere inside changed, taken away or doubled."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.1:
        return draw.choice(STRANGE)
    found = dict(value) if isinstance(value, dict) else list(value)
    keys: list[Any] = list(found) if isinstance(found, dict) else list(range(len(found)))
    key, kind = draw.choice(keys), draw.random()
    if kind < 0.15:
        del found[key]
    elif kind < 0.25 and isinstance(found, dict):
        found[draw.choice([f"{key}_", "", "kind", key])] = found.pop(key)
    elif kind < 0.3 and isinstance(found, list):
        found *= 2
    else:
        found[key] = _changed(found[key], draw)
    return found
