"""What `sgenas lab` leaves for people: tables and plots, from its lab.json alone."""

from pathlib import Path

from sgenas.files import replacing, understood
from sgenas.report.figures import save_figure
from sgenas.report.lab_figures import lab_figures
from sgenas.report.lab_record import FILE, read_lab
from sgenas.report.lab_tables import csv_table, markdown_table


def save_lab(path: str | Path) -> list[Path]:
    """Writes lab.md, lab.csv and the plots that there is data for, as PNG, beside lab.json; their paths.

    Raises RunFolderError where `path` holds no measurements, or damaged ones; nothing is written then.
    """
    folder, record = Path(path), read_lab(path)
    with understood(folder / FILE):
        texts = {"lab.md": markdown_table(record), "lab.csv": csv_table(record)}
        figures = lab_figures(record)
    written = []
    for name, text in texts.items():
        with replacing(folder / name) as file:
            file.write(text.encode("utf-8", errors="replace"))
        written.append(folder / name)
    for name, figure in figures.items():
        written.append(save_figure(figure, folder / f"{name}.png"))
    return written
