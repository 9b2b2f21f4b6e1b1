"""`sgenas search` and `sgenas resume`, and what every command that runs something shares."""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgenas.cli import flags
from sgenas.cli.console import DONE, STOPPED, complain, say, stop_signals
from sgenas.cli.parsing import Parser, command
from sgenas.errors import RunDirError, require

if TYPE_CHECKING:
    from sgenas.run.callbacks import Callback
    from sgenas.searching.config import SearchConfig

COMMON_FLAGS = (
    *("--strategy", "--method", "--data", "--space", "--estimator", "--directions", "--smoothing", "--inner-steps"),
    *("--epochs", "--batch-size", "--lr", "--alpha-lr", "--channels", "--layers", "--nodes"),
    *("--max-params", "--train-images", "--seed", "--device", "--threads"),
)
"""Flags of `sgenas search --help`; `--help-all` has the rest."""
PRESETS = {"source": "darts", "paper": "darts", "nasbench201": "beta-darts"}
"""Preset -> its method, if none is given."""
RANK_TIMEOUT = 1800.0
DERIVED = {"params": "parameters", "macs": "multiply-adds", "latency": "ms in the sum of its parts"}
"""What an epoch row says of the derived network of a search with a budget."""


# -- the flags of a search ----------------------------------------------------------------------------------


def search_flags(parser: Parser) -> None:
    """Puts the settings of a search on a parser."""
    schema = flags.load("search")
    parser.add_argument("--help-all", action="help", help="show every option, by groups")
    parser.value("--preset", "start from the settings of the method's source, of the SGE paper, or of a search in"
                 " NAS-Bench-201 that takes minutes on a CPU", choices=tuple(PRESETS), metavar="NAME")  # fmt: skip
    parser.value("--config", "start from this config.json or run directory; other flags change it", metavar="PATH")
    preset = parser.value_of("--preset") or "source"
    values = schema.effective(
        parser.value_of("--method") or PRESETS.get(preset, "darts"),
        preset,
        parser.value_of("--estimator"),
        None,
    )
    flags.add_flags(parser, schema, values, None if parser.shows_all else COMMON_FLAGS)


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """{path: value} of the settings on the command line."""
    schema = flags.load("train" if hasattr(arguments, "recipe") else "search")
    paths = {flag.path for flag in schema.flags}
    return {name: value for name, value in vars(arguments).items() if name in paths}


def search_config(arguments: argparse.Namespace) -> "SearchConfig":
    """The configuration that the flags describe."""
    schema, found = flags.load("search"), given(arguments)
    if arguments.config is None:
        preset = arguments.preset or "source"
        alphas = found.get("strategy", "gradient") == "gradient"
        method = found.pop("method", PRESETS[preset] if alphas else PRESETS["source"])
        base = schema.effective(method, preset, found.get("estimator.name"), None) | {"method": method}
        if not alphas:
            base = {path: value for path, value in base.items() if not path.startswith("selection.")}
        chosen = flags.settings(schema, found, base)
        from sgenas.searching.config import SearchConfig

        return SearchConfig.of_method(method, chosen, preset=preset)
    require(arguments.preset is None, "preset", "left out with --config, which has all settings", arguments.preset)
    from sgenas.cli.schema import flat
    from sgenas.searching.config import SearchConfig

    kept = SearchConfig.from_dict(read_config(arguments.config, "search"))
    limit = f"{kept.method} as in {arguments.config}, whose settings belong to that method"
    require(found.get("method", kept.method) == kept.method, "method", limit, found.get("method"))
    return SearchConfig.of_method(kept.method, flags.settings(schema, found, flat(kept.to_dict())), base=kept)


def read_config(path: str, kind: str) -> dict[str, Any]:
    """The configuration in a config.json or run directory of that kind."""
    from sgenas.files import read_json
    from sgenas.run.run_dir import FORMAT, VERSION, RunDir

    if Path(path).is_dir():
        found: dict[str, Any] = RunDir(path).read_config(kind)["config"]
        return found
    content = read_json(Path(path), FORMAT, VERSION)
    if content.get("kind") != kind:
        raise RunDirError(f"{path} must be of a {kind} run, got a {content.get('kind')} run")
    return dict(content["config"])


# -- running ------------------------------------------------------------------------------------------------


def run_arguments(parser: Parser) -> None:
    """Where a run is written."""
    parser.value("--out", "run directory; runs/... with method, estimator, data and seed if not set", metavar="DIR")
    parser.switch("--overwrite", "replace the run that is in the directory")


def rank_timeout(parser: Parser) -> None:
    parser.value("--rank-timeout", "under torchrun: seconds without an answer after which another process counts as"
                 " lost", "float", default=RANK_TIMEOUT, metavar="SECONDS")  # fmt: skip


def start(config: Any, name: str, arguments: argparse.Namespace) -> int:
    """Runs a configuration from the beginning, in ``--out`` or ``runs/NAME-DATA-SEED``, if that is a new directory."""
    from sgenas.run.run_dir import RunDir

    require(arguments.out != "", "out", "a directory", arguments.out)
    path = arguments.out or Path("runs") / f"{name}-{config.data.data.split(':')[0]}-{config.seed}"
    processes = getattr(arguments, "processes", None)
    # before the images are read
    RunDir(path, writer=processes is None or processes.first).check_new(overwrite=arguments.overwrite)
    run = partial(config.run, path, overwrite=arguments.overwrite, resume=False)
    return carry_out(run, config, path, arguments)


def carry_out(run: Callable[..., Any], config: Any, path: str | Path, arguments: argparse.Namespace) -> int:
    """Runs a search or a training until it is done or stopped, draws its pictures, and prints what came out.

    Args:
        run: Takes ``callbacks`` and ``stop`` (and ``processes``), as ``SearchConfig.run`` does.
        config: Its configuration.
        path: Its run directory.
        arguments: ``arguments.processes`` are those of torchrun, if there are any.
    """
    from sgenas.device import keep_freed_memory, prepare_deterministic_process

    processes = getattr(arguments, "processes", None)
    keep_freed_memory()
    if config.deterministic:
        prepare_deterministic_process()
    first = processes is None or processes.first
    more = {} if processes is None else {"processes": processes}
    with stop_signals(processes) as stopped:
        result = run(callbacks=[_opening()] if first else [], stop=lambda: bool(stopped), **more)
    if first and result.finished:
        close(Path(path))
    elif first:
        say(f"Stopped. Resume with:  sgenas resume {path}")
    return DONE if result.finished else STOPPED


def _opening() -> "Callback":
    """Prints what runs, before the first step."""
    from sgenas.run.callbacks import Callback

    class Opening(Callback):
        def on_start(self, run: Any) -> None:
            record = run.run_dir.read_config()
            say(opening(record))
            for note in record["environment"].get("notes", ()):
                say(f"data: {note}")

    return Opening()


def opening(record: Mapping[str, Any]) -> str:
    """One line about a run: what, on which images, how large, where."""
    config, facts = record["config"], record["environment"]
    data = config["data"]["data"]
    images = facts.get("images", {})
    counts = ", ".join(f"{count} {name}" for name, count in images.items())
    where = f"{counts} images, {len(facts.get('classes', ()))} classes"
    device, many = facts.get("device"), facts.get("processes", 1)
    shared = f" in {many} processes" if many > 1 else ""
    if record["kind"] == "training":
        return f"training on {data}: {where}; network of {facts.get('weights', 0):,} weights on {device}{shared}"
    what = f"{config['method']} with {config['estimator']['name']}"
    if config.get("strategy", "gradient") != "gradient":
        what = f"{config['strategy']} search"
    return (
        f"{what} on {data}: {where}; supernet of"
        f" {facts['weights']:,} weights and {facts['alphas']} alphas on {device}{shared}"
    )


def close(path: Path) -> None:
    """Draws the pictures of a finished run and prints its cell, its accuracy, its cost, and the files."""
    from sgenas.report import cost, read_run, save_all
    from sgenas.report.decision import selected
    from sgenas.spaces.genotype import existing_nodes

    written = save_all(path)
    record = read_run(path)
    if not record.epochs:
        say(f"{path}/metrics.jsonl has no epoch, whose results could be shown")
        return
    last = record.epochs[-1]
    count = last["epoch"] + 1
    after = f"after {count} epoch{'s' if count > 1 else ''} and {last['seconds']:.0f} s"
    if record.genotype is not None:
        say(cell_text(record.genotype))
        # (in NAS-Bench-201 a cell of none alone has a network)
        empty = [name for name, cell in record.genotype.cells if cell.inputs > 1 and not existing_nodes(cell)]
        if empty:
            which, remedy = " and ".join(empty), "search for more epochs, or with --discretization top-edges"
            complain(f"no operation reaches the threshold in the {which} cell, which has no network; {remedy}")
    if "test_accuracy" in last:
        best = f" (best epoch, chosen on the test images: {last['best_test_accuracy']:.2%})"
        say(f"test accuracy of the last epoch: {last['test_accuracy']:.2%} {after}{best}")
    elif "val_accuracy" in last:
        chance = 100 / max(1, len(record.environment.get("classes", ())))
        say(f"validation accuracy of the supernet: {last['val_accuracy']:.2%} (chance {chance:.3g} %) {after}")
    if record.candidates:
        say(selected(record))
    known = {name.removeprefix("tabulated_"): value for name, value in last.items() if name.startswith("tabulated_")}
    if known:
        each = (f"{value:.2f} % on {name} (rank {last[f'rank_{name}']:,})" for name, value in known.items())
        say(f"tabulated accuracy of the cell: {', '.join(each)}")
    found = {word: last.get(f"derived_{name}") for name, word in DERIVED.items()}
    costs = [f"{value:,.0f} {word}" for word, value in found.items() if value is not None]
    if costs:
        say(f"network of the cell: {', '.join(costs)}")
    say("\n".join([cost(record), *(f"  {each}" for each in written)]))


def cell_text(genotype: Any) -> str:
    """The cells of a genotype, one line per node."""
    lines: list[str] = []
    for name, cell in genotype.cells:
        lines += [f"{name} cell", *(f"  {line}" for line in str(cell).split("; "))]
    return "\n".join(lines)


def _search_arguments(parser: Parser) -> None:
    run_arguments(parser)
    search_flags(parser)
    rank_timeout(parser)


@command(
    "Search",
    _search_arguments,
    example="sgenas search --data cifar10 --method darts --estimator sge --directions 10 --out runs/first",
    distributed=True,
)
def search(arguments: argparse.Namespace) -> int:
    """Search for a cell and write a run directory."""
    config = search_config(arguments)
    from sgenas.bilevel.estimators import ESTIMATORS

    name = ESTIMATORS.name_of(type(config.estimator))
    what = f"{config.method}-{name}" if config.strategy == "gradient" else config.strategy
    return start(config, what, arguments)


def _resume_arguments(parser: Parser) -> None:
    parser.value("run", "run directory")
    rank_timeout(parser)


@command("Search", _resume_arguments, example="sgenas resume runs/first", distributed=True)
def resume(arguments: argparse.Namespace) -> int:
    """Resume a search or training run from its last checkpoint."""
    from sgenas.run.run_dir import RunDir

    path, record = arguments.run, RunDir(arguments.run).read_config()
    config: Any
    if record["config"].get("source") == "python":
        raise RunDirError(f"{path} was started from Python; resume it there, with the same call")
    if record["kind"] == "search":
        from sgenas.searching.config import SearchConfig

        config = SearchConfig.from_dict(record["config"])
    else:
        from sgenas.training.config import TrainConfig

        config = TrainConfig.from_dict(record["config"])
    return carry_out(partial(config.run, path, resume=True), config, path, arguments)
