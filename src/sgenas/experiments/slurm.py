"""A job script for SLURM, an array with a task for each place. The user submits it."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sgenas.errors import ConfigError
from sgenas.experiments.grid import Grid, Place
from sgenas.files import naming, replacing, require_inside

WARNING = 120
"""Seconds before the time limit at which a run is told to write its checkpoint: a step must take less."""

SCRIPT = """\
#!/bin/bash
# Written by sgenas: {count} runs of {grid}, one a task. Each goes on from its checkpoint, so a task may be
# submitted again at any time; one that reaches the time limit puts itself back into the queue.
#SBATCH --job-name=sgenas-table1
#SBATCH --array=0-{last}{limit}
#SBATCH --cpus-per-task={threads}
#SBATCH --output={logs}/%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@{warning}

places=(
{places}
)
export OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads}

# the shell gets the warning and hands it on; the wait that it breaks off says nothing of the run
{python} -m sgenas table1 --out {grid} --place "${{places[$SLURM_ARRAY_TASK_ID]}}" &
run=$!
warned=
trap 'warned=yes; kill -TERM "$run"' TERM
wait "$run"
code=$?
if [ -n "$warned" ]; then
    wait "$run"
    code=$?
fi
trap - TERM
if [ "$code" -eq 130 ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
{python} -m sgenas table1 --out {grid} --only-tables
exit "$code"
"""


def write_script(grid: Grid, places: Sequence[Place], *, jobs: int | None, threads: int | None) -> Path:
    """Writes slurm/table1.sh into the grid's folder: a task for each of `places`, `jobs` of them at a time
    (all that the cluster can take if None) with `threads` CPU threads (1 if None); its path.

    Raises ConfigError for a folder that #SBATCH lines cannot name, RunFolderError where the script cannot be
    written.
    """
    folder = grid.out.absolute()
    logs = folder / "slurm"
    if any(sign.isspace() or sign in "%\\\"'" for sign in str(logs)):
        raise ConfigError(
            f"--out must have no spaces, quotes, backslashes or % with --submit slurm, got {str(folder)!r}"
        )
    text = SCRIPT.format(
        count=len(places),
        grid=shlex.quote(str(folder)),
        last=len(places) - 1,
        limit="" if jobs is None else f"%{jobs}",
        threads=threads or 1,
        logs=logs,
        warning=WARNING,
        places="\n".join(f"    {shlex.quote(place.name)}" for place in places),
        python=shlex.quote(sys.executable),
    )
    require_inside(folder, logs, str(logs))
    with naming(logs):
        logs.mkdir(parents=True, exist_ok=True)
    path = logs / "table1.sh"
    with replacing(path) as file:
        file.write(text.encode())
    return path
