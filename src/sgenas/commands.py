"""The commands of `sgenas` and their flags: one dataclass a command.

Flags and help come from the fields and their docs. The last paragraph of a command's doc is its example.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sgenas.engine import SearchConfig, TrainConfig, TrainSettings
from sgenas.engine.parallel import TIMEOUT
from sgenas.engine.run_folder import read_train_config
from sgenas.errors import ConfigError
from sgenas.experiments.lab import LabSettings


@dataclass(frozen=True)
class SearchFlags(SearchConfig):
    """The settings of a search, with where they start."""

    settings: Literal["source", "paper"] | None = None
    """start from the settings of the method's source (the default) or of the SGE paper; other flags change
    them"""
    config: Path | None = None
    """start from the settings of this config.json (or run folder); other flags change them"""

    @property
    def chosen(self) -> SearchConfig:
        """The settings alone, as a run folder keeps them."""
        return SearchConfig(**{item.name: getattr(self, item.name) for item in fields(SearchConfig)})


@dataclass(frozen=True)
class SearchCommand(SearchFlags):
    """Search a cell and write a run folder.

    Example: sgenas search --data cifar10 --method darts --estimator sge --directions 10 --out runs/first
    """

    out: Path | None = None
    """run folder to make; runs/METHOD-ESTIMATOR-DATA-SEED if not set"""
    overwrite: bool = False
    """replace the run that the folder holds"""
    rank_timeout: float = TIMEOUT
    """under torchrun: seconds without an answer from another process after which the search ends"""


@dataclass(frozen=True)
class PlanCommand(SearchFlags):
    """Predict the passes, time and memory of a search on this machine, beside other estimators; runs nothing.

    Example: sgenas plan --data cifar10 --method darts --estimator sge --directions 10 --device cpu
    """

    json: bool = False
    """print one JSON object"""


@dataclass(frozen=True)
class TrainCommand(TrainSettings):
    """Train the network of a genotype from scratch, test it, and write a run folder.

    Example: sgenas train --genotype runs/first --data cifar10 --recipe source --out runs/first-trained
    """

    genotype: str | None = None
    """name of a published cell, genotype file (JSON), run folder, or the string of a NAS-Bench-201 cell"""
    out: Path | None = None
    """run folder to make; runs/train-DATA-SEED if not set"""
    overwrite: bool = False
    """replace the run that the folder holds"""
    recipe: Literal["source", "paper", "fast"] | None = None
    """start from these settings: source (the default; DARTS' 600 epochs), paper (the SGE paper's where it
    says something) or fast (few epochs); other flags change them"""
    config: Path | None = None
    """start from the settings and genotype of this config.json (or run folder); other flags change them"""

    @property
    def chosen(self) -> TrainConfig:
        """The settings alone with the genotype, as a run folder keeps them."""
        from sgenas.nets import find_genotype

        settings = {item.name: getattr(self, item.name) for item in fields(TrainSettings)}
        if self.genotype is not None:
            return TrainConfig(**settings, genotype=find_genotype(self.genotype))
        if self.config is None:
            raise ConfigError("--genotype must be given: a published name, a genotype file or a run folder")
        return TrainConfig(**settings, genotype=read_train_config(self.config).genotype)


@dataclass(frozen=True)
class ResumeCommand:
    """Go on with a search or training that was stopped or killed, exactly where its checkpoint stands.

    Example: sgenas resume runs/first
    """

    run: tyro.conf.Positional[Path]
    """run folder"""
    rank_timeout: float = TIMEOUT
    """under torchrun: seconds without an answer from another process after which the search ends"""


@dataclass(frozen=True)
class ShowCommand:
    """Print the cell of a run and draw it, with the curves of the run and a report.

    Example: sgenas show runs/first
    """

    run: tyro.conf.Positional[Path]
    """run folder, or a genotype file (JSON)"""
    out: Path | None = None
    """draw only the cell, into this .png or .svg file"""
    json: bool = False
    """print one JSON object: genotype, costs and the files drawn"""


@dataclass(frozen=True)
class ReportCommand:
    """Write one HTML page about a run, or about several side by side: mean and deviation over seeds.

    Example: sgenas report runs/first-order-* runs/sge-* --out comparison.html
    """

    runs: Annotated[
        tuple[Path, ...], tyro.conf.arg(help_behavior_hint="(at least one)"), tyro.conf.Positional
    ] = ()
    """run folders, all searches or all trainings"""
    out: Path | None = None
    """the page; if not set report.html in the run folder, for several runs in this one"""
    json: bool = False
    """print one JSON object: where the page stands"""


@dataclass(frozen=True)
class EvaluateCommand:
    """Test a trained network again, from its checkpoint, and compare with what was logged.

    Example: sgenas evaluate runs/first-trained
    """

    run: tyro.conf.Positional[Path]
    """run folder of a training"""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:1; another one than that of the training may round
    an image over to another class"""
    json: bool = False
    """print one JSON object"""


@dataclass(frozen=True)
class ExportCommand:
    """Write a trained network to a file for others.

    Example: sgenas export runs/first-trained --format onnx --out cell.onnx
    """

    run: tyro.conf.Positional[Path]
    """run folder of a training"""
    format: Literal["state-dict", "torch-export", "onnx"]
    """state-dict (weights by name), torch-export (a program) or onnx (pip install 'sgenas[onnx]')"""
    out: Path
    """file to write"""
    overwrite: bool = False
    """replace the file if there is one"""


@dataclass(frozen=True)
class SizeCommand:
    """Print the exact size of the network that a genotype is trained in.

    Example: sgenas size --genotype darts-v2 --channels 36 --layers 20 --classes 10
    """

    genotype: str
    """name of a published cell, genotype file (JSON), run folder, or the string of a NAS-Bench-201 cell"""
    channels: int | None = None
    """channels of the first cell; 36 if not set (16 for NAS-Bench-201)"""
    layers: int | None = None
    """number of cells; 20 if not set (for NAS-Bench-201 of each stage, 5)"""
    classes: int = 10
    """classes of the data set"""
    resolution: int = 32
    """side of the images in pixels"""
    json: bool = False
    """print one JSON object"""


@dataclass(frozen=True)
class LatencyCommand:
    """Measure how long each operation of a search space takes on this machine, for search --latency-table.

    Example: sgenas latency --channels 36 --layers 20 --out cpu.json
    """

    out: Path
    """JSON file to write"""
    space: Literal["darts", "nasbench201"] = "darts"
    """search space whose operations are timed"""
    channels: int | None = None
    """channels of the first cell; 36 if not set (16 for nasbench201)"""
    layers: int | None = None
    """number of cells; 20 if not set (for nasbench201 of each stage, 5)"""
    nodes: int | None = None
    """darts: computed nodes of a cell; 4 if not set"""
    classes: int = 10
    """classes of the data set"""
    resolution: int = 32
    """side of the images in pixels"""
    input_channels: int = 3
    """channels of the images"""
    batch_size: int = 1
    """images in a batch; milliseconds are those of a batch"""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda or cuda:1"""
    repeats: int = 20
    """timed calls of each operation, of which the table has the median"""
    overwrite: bool = False
    """replace the file if there is one"""


@dataclass(frozen=True)
class QueryCommand:
    """Print the true accuracies of a cell of NAS-Bench-201, its rank and its distance to the best.

    Example: sgenas query --table nasbench201.csv --arch runs/first
    """

    table: Path
    """CSV file with a row for each of the 15,625 cells"""
    arch: str
    """the cell in the benchmark's own form, a genotype file (JSON), or a run folder"""
    json: bool = False
    """print one JSON object"""


@dataclass(frozen=True)
class DataCommand:
    """Print what a data set holds, and draw images of each class.

    Example: sgenas data folder:photos
    """

    spec: tyro.conf.Positional[str]
    """data set, as in search --data"""
    data_dir: Path | None = None
    """folder of the downloaded data sets; ~/.cache/sgenas if not set"""
    image_size: int | None = None
    """side in pixels that images are brought to, as in search --image-size"""
    out: Path | None = None
    """.png or .svg file of the images; runs/data-SPEC.png if not set"""
    json: bool = False
    """print one JSON object"""


@dataclass(frozen=True)
class DoctorCommand:
    """Print versions, devices, memory, threads, data and speed of this machine, and whether a search can run.

    Takes about two seconds; exit code 1 where no search can run.

    Example: sgenas doctor
    """

    json: bool = False
    """print one JSON object"""


@dataclass(frozen=True)
class Table1Command:
    """Run Table 1 of the paper, or what is missing of it: searches, trainings, and the table they make.

    Example: sgenas table1 --preset small --seeds 0,1 --out runs/table1 --jobs 2
    """

    out: Path
    """folder of the grid, new or begun before; what is done in it is kept"""
    preset: Literal["paper", "small", "smoke"] | None = None
    """sizes: paper (the paper's, for GPUs), small (2 CPU cores, 2 hours) or smoke (3 minutes, means nothing);
    if not set that of the grid in --out"""
    seeds: str | None = None
    """seeds with commas between; if not set those of the grid, 0 to 2 in a new one"""
    data: Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: none)")] = ()
    """data sets, each SPEC or NAME=SPEC with a SPEC as in search --data; if not set those of the grid, the
    preset's in a new one"""
    jobs: int | None = None
    """runs at a time; if not set one for each GPU, or without one for each core up to 4"""
    threads: int | None = None
    """CPU threads of each run; if not set the cores divided by --jobs (1 on a cluster)"""
    ray: tuple[str, ...] | None = None
    """run on Ray: the address of a cluster, or without one a cluster on this machine (pip install
    'sgenas[ray]')"""
    submit: Literal["slurm"] | None = None
    """run nothing, write a job script for the missing runs instead and say how to submit it"""
    only_tables: bool = False
    """run nothing, write the tables of what --out holds"""
    status: bool = False
    """run nothing, say how far each run of the grid in --out is"""
    json: bool = False
    """with --status: print one JSON object"""
    place: str | None = None
    """run only this one of the grid in --out, such as cifar10/darts-sge/seed-0, as its workers do"""


@dataclass(frozen=True)
class LabCommand(LabSettings):
    """Measure hypergradient estimators against the truth, at equal cost; goes on with what --out holds.

    Example: sgenas lab --problem weight-decay --estimators first-order sge sge:q=10,variate --out runs/lab
    """

    out: Path = Path("runs/lab")
    """folder of the measurements, tables and plots; what is there already is not measured again"""

    @property
    def chosen(self) -> LabSettings:
        """The settings alone."""
        return LabSettings(**{item.name: getattr(self, item.name) for item in fields(LabSettings)})


@dataclass(frozen=True)
class CompletionCommand:
    """Print a script that lets a shell complete the commands and flags of sgenas.

    Load it in a shell with: source <(sgenas completion bash). docs/command-line.md says how to keep it.

    Example: sgenas completion bash
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """shell that will read the script"""


GROUPS: dict[str, dict[str, type[Any]]] = {
    "Search": {
        "search": SearchCommand,
        "plan": PlanCommand,
        "resume": ResumeCommand,
        "show": ShowCommand,
        "report": ReportCommand,
    },
    "Train": {"train": TrainCommand, "evaluate": EvaluateCommand, "export": ExportCommand},
    "Compare": {"table1": Table1Command, "lab": LabCommand},
    "Look up": {
        "size": SizeCommand,
        "latency": LatencyCommand,
        "query": QueryCommand,
        "data": DataCommand,
        "doctor": DoctorCommand,
        "completion": CompletionCommand,
    },
}
"""Heading of `sgenas --help` -> command -> its flags. A new command gets its row here."""
COMMANDS = {name: kind for group in GROUPS.values() for name, kind in group.items()}
