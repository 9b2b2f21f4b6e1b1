"""Reports on runs: reads a run folder, draws its cells and curves, and writes one HTML page about it."""

from pathlib import Path

from sgenas.report.cell_plot import draw_cell, draw_genotype
from sgenas.report.compare import write_comparison
from sgenas.report.curves import draw_curves, save_curves
from sgenas.report.page import cost, duration, memory, write_report
from sgenas.report.run_folder import AlphaHistory, AlphaTable, RunRecord, read_run

__all__ = [
    "AlphaHistory",
    "AlphaTable",
    "RunRecord",
    "cost",
    "draw_cell",
    "draw_curves",
    "draw_genotype",
    "duration",
    "memory",
    "read_run",
    "save_all",
    "save_curves",
    "write_comparison",
    "write_report",
]


def save_all(run_path: str | Path) -> list[Path]:
    """Writes cell.png and cell.svg (once there is a genotype), curves.png and report.html; their paths.

    Raises RunFolderError when `run_path` holds no run or a damaged one.
    """
    record = read_run(run_path)
    paths = []
    if record.genotype is not None:
        paths += [draw_genotype(record.genotype, record.path / name) for name in ("cell.png", "cell.svg")]
    return [*paths, save_curves(record, record.path / "curves.png"), write_report(record.path)]
