"""Hypergradient benchmark: every estimator on one problem, against two references, at equal cost.

Run it with ``python benchmarks/hypergradients/run.py --help``.
"""
