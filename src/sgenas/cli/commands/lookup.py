"""`sgenas size`, `latency`, `query` and `data`: numbers about cells, operations and datasets."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from sgenas.cli.console import DONE, say, say_json
from sgenas.cli.parsing import Parser, command
from sgenas.errors import InvalidValueError, require

CELL_SPACES = ("darts", "nasbench201")
GENOTYPE = "name of a published cell, genotype file, run directory, NAS-Bench-201 cell, or digits of NAS-Bench-Macro"
IMAGE_FLAGS = (
    ("--channels", "channels of the first cell; 36 if not set (16 for NAS-Bench-201, 32 for NAS-Bench-Macro)", None),
    ("--layers", "number of cells; 20 if not set (5 per stage for NAS-Bench-201)", None),
    ("--num-classes", "classes of the dataset", 10),
    ("--resolution", "side of the images in pixels", 32),
)


def _size_arguments(parser: Parser) -> None:
    parser.value("--genotype", GENOTYPE, required=True, metavar="CELL")
    for name, text, default in IMAGE_FLAGS:
        parser.value(name, text, "int", default=default, metavar="INT")
    parser.switch("--json", "print one JSON object")


@command(
    "Look up", _size_arguments, example="sgenas size --genotype darts-v2 --channels 36 --layers 20 --num-classes 10"
)
def size(arguments: argparse.Namespace) -> int:
    """Print the exact size of the network of a genotype."""
    from sgenas.spaces.darts_space.published import find_genotype
    from sgenas.spaces.networks import network_size

    names = ("channels", "layers", "num_classes", "resolution")
    sizes = {name: getattr(arguments, name) for name in names}
    values = asdict(network_size(find_genotype(arguments.genotype), **sizes))
    if arguments.json:
        say_json(values)
    else:
        say("\n".join(f"{name.replace('_', ' '):24}{value:>16,}" for name, value in values.items()))
    return DONE


def _latency_arguments(parser: Parser) -> None:
    parser.value("--out", "JSON file to write", required=True, metavar="FILE")
    parser.value("--space", "search space whose operations are timed", choices=CELL_SPACES, default="darts")
    parser.value("--nodes", "darts: computed nodes of a cell; 4 if not set", "int", metavar="INT")
    for name, text, default in IMAGE_FLAGS:
        parser.value(name, text, "int", default=default, metavar="INT")
    parser.value("--input-channels", "channels of the images", "int", default=3, metavar="INT")
    parser.value("--batch-size", "images per batch; milliseconds are per batch", "int", default=1, metavar="INT")
    parser.value("--device", "auto (a GPU if there is one), cpu, cuda or cuda:1", default="auto", metavar="NAME")
    parser.value("--repeats", "timed calls of each operation; the table has their median", "int", default=20,
                 metavar="INT")  # fmt: skip
    parser.switch("--overwrite", "replace the file if there is one")


@command("Look up", _latency_arguments, example="sgenas latency --channels 36 --layers 20 --out cpu.json")
def latency(arguments: argparse.Namespace) -> int:
    """Measure the latency of each operation of a search space here, for search --latency-table."""
    out = Path(arguments.out)
    if out.exists() and not arguments.overwrite:
        raise InvalidValueError(f"--out must be a new file, or pass --overwrite; {out} exists already")
    nodes = arguments.nodes
    require(arguments.space == "darts" or nodes is None, "nodes", "left out without --space darts", nodes)
    from sgenas.device import find_device
    from sgenas.files import naming
    from sgenas.run.run_dir import environment
    from sgenas.spaces.cell_costs import NetworkSpec
    from sgenas.spaces.latency import measure

    device = find_device(arguments.device)
    images = {"num_classes": arguments.num_classes, "input_channels": arguments.input_channels}
    images |= {"height": arguments.resolution, "width": arguments.resolution}
    network = NetworkSpec.of(arguments.space, arguments.channels, arguments.layers, nodes, **images)
    # before the minutes that it may take
    with naming(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    size, repeats = arguments.batch_size, arguments.repeats
    facts = environment(device)
    table = measure(network, batch_size=size, repeats=repeats, device=device, facts=facts)
    table.save(out)
    say(f"{out}: {len(table.milliseconds)} operations with their placements")
    return DONE


def _query_arguments(parser: Parser) -> None:
    parser.value("--table", "complete table: NAS-Bench-201's (CSV) or NAS-Bench-Macro's (JSON)", required=True,
                 metavar="FILE")  # fmt: skip
    parser.value("--arch", "the cell in the benchmark's form, a genotype file, or a run directory", required=True,
                 metavar="CELL")  # fmt: skip
    parser.switch("--json", "print one JSON object")


@command("Look up", _query_arguments, example="sgenas query --table nasbench201.csv --arch runs/first")
def query(arguments: argparse.Namespace) -> int:
    """Print the tabulated accuracies of a benchmark's architecture, its rank and its distance to the best."""
    from sgenas.spaces import load_table
    from sgenas.spaces.darts_space.published import find_genotype

    table, arch = load_table(arguments.table), find_genotype(arguments.arch)
    found = {
        name: {"accuracy": value, "rank": table.rank(arch, name), "regret": table.regret(arch, name)}
        for name, value in table.query(arch).items()
    }
    if arguments.json:
        say_json(found)
        return DONE
    sys.stdout.write(f"{'':28}{'accuracy':>10}{'rank':>8}{'regret':>9}\n")
    for name, row in found.items():
        sys.stdout.write(f"{name:28}{row['accuracy']:10.2f}{row['rank']:8}{row['regret']:9.2f}\n")
    return DONE


def _data_arguments(parser: Parser) -> None:
    parser.value("spec", "dataset, as in search --data")
    parser.value("--data-dir", "directory of downloaded datasets; ~/.cache/sgenas if not set", metavar="DIR")
    parser.value("--image-size", "side in pixels that images are scaled and cropped to", "int", metavar="INT")
    parser.switch("--json", "print one JSON object")


@command("Look up", _data_arguments, example="sgenas data folder:photos")
def data(arguments: argparse.Namespace) -> int:
    """Print what a dataset holds: classes, sizes, imbalance, statistics."""
    from sgenas.data import ImageSettings, load_images, summarize

    settings = ImageSettings(arguments.spec, arguments.data_dir, image_size=arguments.image_size)
    found = summarize(load_images(settings, seed=0, test=True))
    if arguments.json:
        say_json(found.to_dict())
    else:
        say(str(found))
    return DONE
