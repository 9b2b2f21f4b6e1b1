"""Reports about runs: reads a run directory, draws its cells and curves, and writes one HTML page."""

from pathlib import Path

from sgenas.report.cell_figure import draw_genotype, genotype_figure
from sgenas.report.compare import write_comparison
from sgenas.report.curves import draw_curves
from sgenas.report.formatting import cost, costs, duration, is_number, memory
from sgenas.report.page import write_page, write_report
from sgenas.report.run_record import AlphaHistory, MixingTable, RunRecord, read_run
from sgenas.report.style import save_figure

__all__ = [
    "AlphaHistory",
    "MixingTable",
    "RunRecord",
    "cost",
    "costs",
    "draw_curves",
    "draw_genotype",
    "duration",
    "is_number",
    "memory",
    "read_run",
    "save_all",
    "save_figure",
    "write_comparison",
    "write_report",
]


def save_all(run_dir: str | Path) -> list[Path]:
    """Writes cell.png (once there is a genotype), curves.png and report.html; returns their paths.

    Each figure is drawn once, and the page embeds the same image.

    Raises:
        RunDirError: If the directory holds no run, a file is damaged, or a file cannot be written.
        GenotypeError: If its genotype.json is damaged.

    Example:
        >>> sgenas.report.save_all("runs/first")
    """
    record = read_run(run_dir)
    cell, paths = None, []
    if record.genotype is not None:
        paths.append(record.path / "cell.png")
        cell = save_figure(genotype_figure(record.genotype), paths[-1])
    paths += [record.path / "curves.png", record.path / "report.html"]
    write_page(record, paths[-1], cell, save_figure(draw_curves(record), paths[-2]))
    return paths
