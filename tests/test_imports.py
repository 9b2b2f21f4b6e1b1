"""What `import sgenas` and help load: nothing heavy beside torch. benchmarks/import_time.py measures it."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = {
    *("matplotlib", "pyarrow", "sklearn", "scipy", "torchvision", "tensorboard", "PIL", "pandas"),
    *("rich", "tyro", "jinja2", "onnx", "ray", "datasets"),
}
OF_THE_COMMAND = {"rich", "tyro", "PIL"}


def loaded(statement: str) -> set[str]:
    """Names of all modules after `statement`, in a process of its own, that torch alone has not loaded."""
    script = f"""
import json, sys
import torch
before = set(sys.modules)
{statement}
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    environment = os.environ | {"COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    return set(json.loads(out.stdout.splitlines()[-1]))


def test_import_sgenas_loads_nothing_heavy() -> None:
    found = loaded("import sgenas")
    assert "sgenas.bilevel" in found
    assert {name.split(".")[0] for name in found} & HEAVY == set()
    assert not {name for name in found if name.startswith(("sgenas.engine", "sgenas.report", "sgenas.data"))}


@pytest.mark.parametrize("command", ["[]", "['completion', 'bash']"])
def test_overview_and_completion_load_nothing_that_draws(command: str) -> None:
    found = loaded(f"from sgenas.cli import main\nassert main({command}) == 0")
    tops = {name.split(".")[0] for name in found}
    assert {"rich", "tyro"} <= tops
    assert tops & (HEAVY - OF_THE_COMMAND) == set()
    # the compiler takes longer to load than all of sgenas
    assert "torch._dynamo" not in found
