"""What `import sgenas`, help and completion load: nothing heavy. benchmarks/import_time.py measures it."""

import json
import os
import subprocess
import sys

import pytest

import sgenas

HEAVY = {"torch", "numpy", "rich", "matplotlib", "pyarrow", "sklearn", "scipy", "PIL", "jinja2", "tensorboard", "wandb"}


def loaded(statement: str) -> set[str]:
    """Names of all modules that a new process has loaded after ``statement``."""
    script = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    environment = os.environ | {"COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    return set(json.loads(out.stdout.splitlines()[-1]))


def test_import_sgenas_loads_nothing_else() -> None:
    found = loaded("import sgenas")
    assert {name.partition(".")[0] for name in found} & HEAVY == set()
    assert not {name for name in found if name.startswith("sgenas.")}


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["--version"],
        ["search", "--help"],
        ["search", "--help-all"],
        ["train", "--help"],
        ["completion", "bash"],
    ],
)
def test_help_and_completion_load_nothing_heavy(command: list[str]) -> None:
    statement = f"""
from sgenas.cli.main import main
try:
    main({command!r})
except SystemExit as end:
    assert not end.code
"""
    assert {name.partition(".")[0] for name in loaded(statement)} & HEAVY == set()


def test_search_loads_no_compiler_and_no_plotting() -> None:
    # torch._dynamo takes longer to load than all of sgenas
    found = loaded("import sgenas\nsgenas.search, sgenas.SearchConfig, sgenas.TrainConfig")
    assert {"torch._dynamo", "matplotlib", "sklearn", "pyarrow"} & found == set()


@pytest.mark.parametrize("name", sgenas.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(sgenas, name) is not None


def test_search_is_the_function_whatever_is_imported_first() -> None:
    loaded("import sgenas\nsgenas.SearchConfig, sgenas.callbacks\nassert callable(sgenas.search)")
