"""How long `import sgenas` takes beyond torch's own import.

    python benchmarks/import_time.py [--repeats 5]

Each repeat is a process of its own that imports torch, then sgenas, then sgenas.cli, and times each by the
clock on the wall and by the processor's. An untimed process goes first and brings the files into memory.
Prints the medians and adds a JSON line to benchmarks/results/import_time.jsonl. The promise: `import sgenas`
takes less than 0.3 s beyond torch.
"""

import argparse
import json
import statistics
import subprocess
import sys

from record import add_result

PARTS = ("torch", "sgenas", "sgenas.cli")
SCRIPT = f"""
import importlib, json, time
found = {{}}
for name in {PARTS!r}:
    wall, processor = time.perf_counter(), time.process_time()
    importlib.import_module(name)
    found[name] = [time.perf_counter() - wall, time.process_time() - processor]
print(json.dumps(found))
"""


def main() -> None:
    """Runs the measurement; see the module's docstring."""
    parser = argparse.ArgumentParser(description="time of import sgenas")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error(f"--repeats must be >= 1, got {arguments.repeats}")
    measured = [_imported() for _ in range(arguments.repeats + 1)][1:]
    figures = {}
    print(f"{'':12}{'seconds':>10}{'min':>8}{'max':>8}{'of the processor':>20}")
    for name in PARTS:
        walls, processors = zip(*(one[name] for one in measured), strict=True)
        figures[name] = {
            "median": statistics.median(walls),
            "min": min(walls),
            "max": max(walls),
            "processor": statistics.median(processors),
        }
        print(
            f"{name:12}{figures[name]['median']:10.3f}{min(walls):8.3f}{max(walls):8.3f}"
            f"{figures[name]['processor']:20.3f}"
        )
    add_result("import_time", {"repeats": arguments.repeats, "seconds": figures})


def _imported() -> dict[str, list[float]]:
    """{module: seconds on the wall, seconds of the processor}, each beyond those before it."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
