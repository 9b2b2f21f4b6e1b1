"""Searches for files that break a reader by following the branches they take (libFuzzer through atheris).

    pip install atheris
    python tests/fuzz_guided.py KIND [--seconds 60]         KIND: one of PURE in tests/support/readers.py

It starts from an honest file and from those in tests/corpus/KIND. An input that ends in anything but one of
the library's own errors stops it: the input is written to crash-... in the folder where it was started, and
belongs into tests/corpus/KIND under a better name. No test runs this: atheris is no dependency, and what it
finds depends on how long it may search.
"""

import argparse
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
for folder in (HERE / "support", HERE.parent / "src"):
    sys.path.insert(0, str(folder))

import atheris  # noqa: E402

with atheris.instrument_imports(include=["sgenas", "json", "csv"]):
    import readers

from sgenas.errors import SgenasError  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description="Searches for files that break a reader.")
    parser.add_argument("kind", choices=readers.PURE)
    parser.add_argument("--seconds", type=int, default=60)
    arguments = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="sgenas-fuzz-"))
    run = home / "run"
    if arguments.kind.startswith("run-") or arguments.kind == "settings":
        readers.finished_run(run)
    (home / "reader").mkdir()
    reader = readers.READERS[arguments.kind](home / "reader", run)
    seeds = home / "seeds"
    seeds.mkdir()
    (seeds / "honest").write_bytes(reader.path.read_bytes())

    def try_one(content: bytes) -> None:
        reader.path.write_bytes(content)
        try:
            reader.read()
        except SgenasError as error:
            if "\n" in str(error):
                raise AssertionError("an error must be one line") from error

    # new inputs go to the first folder, the others are only read
    places = [seeds, *(HERE / "corpus").glob(arguments.kind)]
    limits = (f"-max_total_time={arguments.seconds}", "-max_len=20000")
    atheris.Setup([sys.argv[0], *map(str, places), *limits], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
