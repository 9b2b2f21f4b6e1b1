"""``hf:DIR_OR_NAME``: images through Hugging Face's ``datasets``, an optional package."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgenas.data.decode import decoded
from sgenas.data.images import ImageData
from sgenas.data.sources import (
    DATASET_SOURCES,
    DatasetSource,
    LoadRequest,
    absolute_path,
    held_out,
    split_notes,
)
from sgenas.data.tables import encoded, find_columns, join_labels, read_labels
from sgenas.errors import DataError, one_line


def load_hugging_face(place: str, request: LoadRequest) -> ImageData:
    """A directory of ``save_to_disk``, a directory of Parquet or image files, or a name for ``load_dataset``.

    The split ``train`` (or the only one) trains, the first of `TEST_SPLITS` tests.
    """
    spec = request.spec
    splits = {name: split.with_format("arrow") for name, split in _load(spec, place).items()}
    tests = held_out(splits)
    training = [name for name in splits if name not in tests]
    used = ["train"] if "train" in splits else training
    if len(used) != 1:
        raise DataError(f"{spec} must have a split named train, or one that is no test, got {list(splits)}")
    used += tests[:1] if request.test else []
    schema = splits[used[0]].features.arrow_schema
    image, label = find_columns(spec, schema)
    if not {image, label} <= set(splits[used[-1]].column_names):
        raise DataError(f"split {used[-1]} of {spec} must have the columns {image} and {label} too")
    columns = [splits[name].select_columns([label])[:].column(label) for name in used]
    found = [read_labels(spec, schema, label, column) for column in columns]
    labels, classes, notes = join_labels(spec, found)
    parts = []
    for name, each in zip(used, labels, strict=True):
        rows = request.choose(each, classes).tolist() if name == used[0] else list(range(len(each)))
        column = splits[name].select_columns([image]).select(rows)[:].column(image)
        parts.append((encoded(f"{spec} {name}", rows, column), each[rows]))
    unused = [name for name in splits if name not in used and (request.test or name not in tests)]
    return decoded(
        request,
        parts[0],
        parts[1] if len(parts) > 1 else None,
        classes,
        origin=f"{place}, split {' and '.join(used)}, columns {image} and {label}",
        notes=notes + split_notes("split", used[1] if len(used) > 1 else None, unused),
    )


def _load(spec: str, place: str) -> Mapping[str, Any]:
    """{split: its dataset}."""
    # packages that it imports draw from Python's global generator
    state = random.getstate()
    try:
        import datasets
    except ImportError:
        raise DataError(f"{spec} needs the package datasets: pip install 'sgenas[hf]'") from None
    finally:
        random.setstate(state)

    folder = Path(place).expanduser()
    if not folder.exists() and place.startswith(("/", ".", "~")):
        raise DataError(f"directory {folder} does not exist")
    bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(folder)
        else:
            found = datasets.load_dataset(str(folder) if folder.exists() else place)
    except Exception as error:
        # network, files, parsers and the package's own errors
        raise DataError(f"{spec} cannot be loaded: {type(error).__name__}: {one_line(error)}") from None
    finally:
        if bars:
            datasets.enable_progress_bars()
    return found if isinstance(found, Mapping) else {"train": found}


def _absolute(place: str) -> str:
    return absolute_path(place) if Path(place).expanduser().exists() else place


DATASET_SOURCES.register("hf", DatasetSource(load_hugging_face, "DIR_OR_NAME", absolute=_absolute))
