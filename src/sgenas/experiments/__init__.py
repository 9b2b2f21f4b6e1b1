"""Experiments of many runs: Table 1 of the paper (and any method, estimator and dataset) as a grid of jobs.

A job is a search, and the training and test of the derived cell. Everything is in ``sgenas.experiments.table1``:

    GridSettings(preset=None, data=(), seeds=(), methods=(), estimators=())      what is asked for (a dataclass)
    make_grid(out, settings=None, command="") -> Grid                            writes OUT/grid.json, runs nothing
    run(out, settings=None, *, launcher=None, console=None, stop=..., command="") -> list[JobStatus]
    forecast(out, settings=None, *, machine="auto") -> TableForecast             predicted hours, runs nothing
    run_job(out, name, *, stop=..., patience=0.0) -> Outcome | None              one job, in this process
    status(out) -> dict; status_text(dict) -> str                                how far each job is
    write_tables(out) -> list[Path]                                              table.md, .csv, .tex

``launcher`` says where jobs run, dataclasses too: ``sgenas.experiments.launchers.Local(jobs, threads)`` (default),
``sgenas.experiments.clusters.Ray(address, jobs, threads)`` or ``sgenas.experiments.clusters.Slurm(jobs, threads,
minutes, gpus, partition, options)``, which submits and returns. ``JobStatus.state`` is "done", "failed", "begun" or
"missing"; the jobs of a stopped command are "begun" or "missing". ``Outcome.done`` is False for a failed job, whose
``stage`` and ``reason`` say why; ``run_job`` returns None for a stopped one.

Example:
    >>> from sgenas.experiments import table1
    >>> table1.run("runs/table1", table1.GridSettings(preset="smoke", seeds=(0,)))
"""
