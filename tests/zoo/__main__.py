"""Tries all modules with all estimators and writes the page: ``python tests/zoo``.

With words, only prints the outcomes of modules that have them in their names: ``python tests/zoo dropout``.
"""

import sys
import time

import torch
from zoo_check import CASES, OUTCOMES, counts, outcome
from zoo_modules import ENTRIES
from zoo_table import PAGE, Table, page

torch.set_num_threads(1)


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


table: Table = {}
for entry in ENTRIES.values():
    if entry.missing or not all(word in entry.name for word in sys.argv[1:]):
        continue
    start = time.perf_counter()
    row = {name: outcome(entry, name) for name in CASES}
    table |= {(entry.name, name): found for name, found in row.items()}
    marks = " ".join(str(OUTCOMES.index(found.kind)) for found in row.values())
    say(f"{entry.name:45s} {marks} {time.perf_counter() - start:6.2f} s")
    for name, found in row.items():
        if found.kind in ("wrong", "raw error") or (len(sys.argv) > 1 and found.detail):
            say(f"    {name}: {found.kind}: {found.detail}")
say(str(counts(table)))
if len(sys.argv) == 1:
    PAGE.write_text(page(table), encoding="utf-8")
