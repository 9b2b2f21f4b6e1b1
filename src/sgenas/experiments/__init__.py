"""Experiments of many runs: Table 1 of the paper (and any method, estimator and dataset) as a grid of jobs.

A job is a search, and the training and test of the derived cell. `sgenas.experiments.table1` plans, runs, predicts and
shows a grid; `sgenas.experiments.launchers.Local` and the `Ray` and `Slurm` of `sgenas.experiments.clusters` run jobs.

Example:
    >>> from sgenas.experiments import table1
    >>> table1.run("runs/table1", table1.GridSettings(preset="smoke", seeds=(0,)))
"""
