"""Small files that would take all memory: each is refused in one line, and little memory is taken."""

import io
import json
import os
import pickle
import shutil
import struct
import types
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from measured import at_most, refused

from sgenas import archives, data, limits
from sgenas.engine import checkpoint
from sgenas.engine.run_folder import read_settings
from sgenas.experiments.grid import load_grid
from sgenas.experiments.lab.store import read_tree
from sgenas.nets.latency import LatencyTable
from sgenas.report import read_run
from sgenas.report.lab_record import read_lab
from sgenas.spaces import AccuracyTable, Genotype

MIB = 2**20


def folder_with(path: Path, run: Path) -> Path:
    """A copy of `run` with the file at `path` in place of its own of that name."""
    folder = path.parent / "copy"
    shutil.copytree(run, folder)
    (folder / path.name).unlink(missing_ok=True)
    os.link(path, folder / path.name)
    return folder


READERS: dict[str, Callable[[Path, Path], object]] = {
    "cell.json": lambda path, _: Genotype.load(path),
    "config.json": lambda path, _: read_settings(path),
    "checkpoint.pt": lambda path, _: checkpoint.load(path),
    "truths.pt": lambda path, _: read_tree(path),
    "table.csv": lambda path, _: AccuracyTable.load(path),
    "latency.json": lambda path, _: LatencyTable.load(path),
    "lab.json": lambda path, _: read_lab(path),
    "grid.json": lambda path, _: load_grid(path.parent),
    "metrics.jsonl": lambda path, run: read_run(folder_with(path, run)),
    "alphas.npz": lambda path, run: read_run(folder_with(path, run)),
    "genotype.json": lambda path, run: read_run(folder_with(path, run)),
    "0.png": lambda path, _: data.load(f"folder:{path.parent.parent}"),
    "train.parquet": lambda path, _: data.load(f"parquet:{path}"),
}
"""File name -> what reads it, given a run folder to put it into."""


@pytest.mark.parametrize("name", READERS)
def test_enormous_files(name: str, place: Callable[[str], Path], begun: Path) -> None:
    path = place(name)
    path.touch()
    os.truncate(path, 10 * limits.GIB)
    what = {"0.png": "at most", "checkpoint.pt": "checksum", "truths.pt": "zip"}.get(
        name, "must have at most"
    )
    refused(lambda: READERS[name](path, begun), "Parquet" if name == "train.parquet" else what, 32 * MIB)


@pytest.mark.parametrize("name", ["cell.json", "config.json", "table.csv", "truths.pt", "metrics.jsonl"])
def test_files_without_an_end(name: str, tmp_path: Path, begun: Path) -> None:
    """A pipe that nobody writes into, and a link to a device that never stops."""
    pipe, link = tmp_path / "pipe" / name, tmp_path / "link" / name
    pipe.parent.mkdir()
    link.parent.mkdir()
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    for path in (pipe, link):
        refused(lambda path=path: READERS[name](path, begun), "got a pipe, socket or device", 32 * MIB)  # type: ignore[misc]


@pytest.mark.parametrize("name", ["cell.json", "config.json", "latency.json", "lab.json", "grid.json"])
def test_numbers_of_a_million_digits(name: str, tmp_path: Path, begun: Path) -> None:
    path = tmp_path / name
    path.write_text(f'{{"format": {"7" * 1_000_000}}}')
    refused(lambda: READERS[name](path, begun), "must be JSON", 32 * MIB)


def test_a_table_of_nothing(tmp_path: Path, begun: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"arch,cifar10_test\n" + b"\n" * (30 * MIB))
    refused(lambda: READERS["table.csv"](path, begun), "must have 2 values, got 0", 256 * MIB)


# -- archives ------------------------------------------------------------------------------------------------


def npy(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def archive(path: Path, compression: int, claimed: int | None = None) -> None:
    """An npz with 64 MiB of zeros, packed, that claims (in both of its places) to have `claimed` bytes."""
    with zipfile.ZipFile(path, "w", compression) as made, made.open("epoch.npy", "w") as file:
        file.write(npy((8 * MIB,)))
        for _ in range(64):
            file.write(bytes(MIB))
    size = len(npy((8 * MIB,))) + 64 * MIB
    if claimed is not None:
        content = path.read_bytes()
        assert content.count(struct.pack("<I", size)) == 2
        path.write_bytes(content.replace(struct.pack("<I", size), struct.pack("<I", claimed)))
    assert path.stat().st_size < MIB


@pytest.mark.parametrize(
    ("compression", "claimed", "text"),
    [
        (zipfile.ZIP_DEFLATED, None, "its arrays must have at most 33,554,432 bytes, got 67,108,"),
        (zipfile.ZIP_DEFLATED, 1000, "Bad CRC-32"),
        (zipfile.ZIP_BZIP2, 1000, "epoch.npy must be stored or deflated"),
        (zipfile.ZIP_LZMA, 1000, "epoch.npy must be stored or deflated"),
    ],
)
def test_packed_arrays(tmp_path: Path, compression: int, claimed: int | None, text: str) -> None:
    archive(tmp_path / "alphas.npz", compression, claimed)
    refused(lambda: archives.read_arrays(tmp_path / "alphas.npz"), text, 32 * MIB)


def test_names_in_archives_lead_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "in" / "alphas.npz"
    path.parent.mkdir()
    stream = io.BytesIO()
    np.save(stream, np.zeros(2))
    with zipfile.ZipFile(path, "w") as made:
        for name in ("../../up.npy", "/tmp/sgenas-absolute.npy"):
            made.writestr(name, stream.getvalue())
    assert set(archives.read_arrays(path)) == {"../../up", "/tmp/sgenas-absolute"}
    assert sorted(tmp_path.rglob("*")) == [path.parent, path]
    assert not Path("/tmp/sgenas-absolute.npy").exists()


def sealed(path: Path, content: bytes) -> None:
    """Writes an archive with the checksum that a checkpoint has: whoever hands one on can compute it."""
    with path.open("wb") as file:
        for part in checkpoint._sealed(memoryview(content)):
            file.write(part)


def repacked(change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A checkpoint of one tensor of 1,000 zeros, each of its parts changed."""
    stream, made = io.BytesIO(), io.BytesIO()
    torch.save({"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "w": torch.zeros(1000)}, stream)
    with zipfile.ZipFile(stream) as good, zipfile.ZipFile(made, "w", compression) as bad:
        for record in good.infolist():
            bad.writestr(record.filename, change(record.filename, good.read(record)))
    return made.getvalue()


def replaced(old: bytes, new: bytes) -> Callable[[], bytes]:
    """Such a checkpoint with other bytes where `old` stands first in its parts."""
    return lambda: repacked(lambda name, content: content.replace(old, new, 1))


class _Makes:
    """Pickled as a call of `make` with `arguments`."""

    def __init__(self, make: Callable[..., object], *arguments: object) -> None:
        self._call = make, arguments

    def __reduce__(self) -> Any:
        return self._call


def pickled(value: object) -> bytes:
    return pickle.dumps({"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "w": value}, protocol=2)


CHECKPOINTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "packed": (
        lambda: repacked(
            lambda name, content: bytes(256 * MIB) if name.endswith("data/0") else content,
            zipfile.ZIP_DEFLATED,
        ),
        "must be stored as it is, got it packed",
    ),
    "claims": (
        # 1,000 numbers: BININT2, little endian
        replaced(b"M\xe8\x03t", b"J\x00\x00\x00\x40t"),
        "must have the bytes of archive/data/0, 4,000, got 4,294,967,296",
    ),
    "claims a little": (
        replaced(b"M\xe8\x03t", b"M\xe9\x03t"),
        "must have the bytes of archive/data/0, 4,000, got 4,004",
    ),
    "shape": (
        # its size is a tuple of one
        replaced(b"M\xe8\x03\x85", b"M\xe9\x03\x85"),
        "is damaged",
    ),
    "numbers of another width": (
        replaced(b"FloatStorage", b"DoubleStorage"),
        "must have the bytes of archive/data/0, 4,000, got 8,000",
    ),
    "numbers of an unknown kind": (
        replaced(b"FloatStorage", b"QInt32Storage"),
        "must hold tensors and plain data, got 'torch QInt32Storage'",
    ),
    "a part in another folder": (
        # its name, a text of one letter
        replaced(b"X\x01\x00\x00\x000", b"X\x05\x00\x00\x00../up"),
        "There is no item named 'archive/data/../up' in the archive",
    ),
    "bytearray": (
        lambda: repacked(
            lambda name, content: pickled(_Makes(bytearray, 10**10)) if name.endswith("data.pkl") else content
        ),
        "must hold tensors and plain data, got '__builtin__ bytearray'",
    ),
    "tensor": (
        lambda: repacked(
            lambda name, content: (
                pickled(_Makes(torch.Tensor, 50_000, 50_000)) if name.endswith("data.pkl") else content
            )
        ),
        "must hold tensors and plain data, got 'torch",
    ),
    "code": (
        lambda: repacked(
            lambda name, content: (
                pickled(_Makes(os.system, "touch /tmp/owned")) if name.endswith("data.pkl") else content
            )
        ),
        "must hold tensors and plain data, got 'posix system'",
    ),
    "newer pickle": (
        lambda: repacked(
            lambda name, content: pickle.dumps(_Makes(bytearray, 10**10), 4) if "pkl" in name else content
        ),
        "got the instruction FRAME",
    ),
    "empty lists": (
        lambda: repacked(
            lambda name, content: b"\x80\x02" + b"]" * (9 * MIB) + b"." if "pkl" in name else content
        ),
        "data.pkl must have at most 8,388,608 bytes",
    ),
    "two": (
        lambda: repacked(lambda name, content: content).replace(b"archive/version", b"archi/data.pkl\x00"),
        "is damaged",
    ),
}


def instructions(content: bytes) -> Callable[[], bytes]:
    """A checkpoint of which the value of "w" is what these instructions of a pickle leave on the stack."""
    head = (
        b"".join(
            b"X" + struct.pack("<I", len(text)) + text.encode() for text in ("format", checkpoint.FORMAT)
        )
        + b"sX\x07\x00\x00\x00versionK"
        + bytes([checkpoint.VERSION])
        + b"sX\x01\x00\x00\x00w"
    )
    return lambda: repacked(
        lambda name, old: b"\x80\x02}" + head + content + b"s." if name.endswith("data.pkl") else old
    )


PART = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuM\xe8\x03tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + PART
CHECKPOINTS |= {
    "a tuple for a key": (instructions(b"})" + b"\x85" * 300_000 + b"Ns"), "texts and numbers for keys"),
    "deep": (instructions(b"]" * 60 + b"a" * 59), "must have at most 50 levels"),
    "a list in itself": (instructions(b"]q\x00h\x00a"), "must have at most 50 levels"),
    "many objects": (instructions(b"(" + b"]" * 600_000 + b"t"), "must have at most 500,000 instructions"),
    "dictionaries of a list": (
        instructions(b"ccollections\nOrderedDict\n(](K\x01K\x02tatR"),
        "got a call of collections OrderedDict",
    ),
    "bytes without a shape": (instructions(PART), "must hold tensors and plain data, got"),
    "a number of bytes": (instructions(b"ctorch\nUntypedStorage\n"), "got 'torch UntypedStorage'"),
    "code as a value": (instructions(b"ctorch\nFloatStorage\n"), "must hold tensors and plain data, got"),
    "code in a tuple": (instructions(b"ctorch\nFloatStorage\n\x85"), "must hold tensors and plain data, got"),
    "half a tensor in a tuple": (instructions(PART + b"\x85"), "must hold tensors and plain data, got"),
    "an attribute": (instructions(b"]}b"), "got the instruction BUILD"),
    "one number as many": (
        instructions(TENSOR + b"K\x00J\x00\x00\x00\x40\x85K\x00\x85\x89}tR"),
        "must be inside of its 1,000 numbers",
    ),
    "before its start": (
        instructions(TENSOR + b"J\xff\xff\xff\xffK\x01\x85K\x01\x85\x89}tR"),
        "must have a part, a place and a shape",
    ),
    "behind its end": (
        instructions(TENSOR + b"M\xe7\x03K\x02\x85K\x01\x85\x89}tR"),
        "must be inside of its 1,000 numbers",
    ),
}


def test_a_tensor_by_its_instructions(tmp_path: Path) -> None:
    """What the hostile ones above are made of, in good order."""
    path = tmp_path / "checkpoint.pt"
    sealed(path, instructions(TENSOR + b"K\x05K\x02K\x03\x86K\x03K\x01\x86\x89}tR")())
    assert torch.equal(checkpoint.load(path)["w"], torch.zeros(2, 3))


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints(tmp_path: Path, kind: str) -> None:
    make, text = CHECKPOINTS[kind]
    sealed(tmp_path / "checkpoint.pt", make())
    refused(lambda: checkpoint.load(tmp_path / "checkpoint.pt"), text, 64 * MIB)
    assert not Path("/tmp/owned").exists()


def test_parts_that_share_their_bytes(tmp_path: Path) -> None:
    """Every entry of the directory names the same megabyte."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        made.writestr("archive/data/0", bytes(MIB))
        made.filelist += made.filelist * 99
        made._didModify = True  # type: ignore[attr-defined]
    (tmp_path / "truths.pt").write_bytes(stream.getvalue())
    refused(lambda: read_tree(tmp_path / "truths.pt"), "its parts must have at most its own", 32 * MIB)


def test_a_checkpoint_of_a_hundred_megabytes_is_read(tmp_path: Path) -> None:
    """In as much memory as it has, and little more."""
    path, state = tmp_path / "checkpoint.pt", {"w": torch.ones(25 * MIB), "n": [1, 2.5, None, "x", (True,)]}
    checkpoint.save(path, state)
    found = {}
    with at_most(120 * MIB):
        found |= checkpoint.load(path)
    assert torch.equal(found["w"], state["w"])
    assert found["n"] == state["n"]


# -- parquet -------------------------------------------------------------------------------------------------


def column(values: list[bytes], rows: list[int]) -> pa.Array:
    """`rows` of `values`, which stand in the file once."""
    return pa.DictionaryArray.from_arrays(pa.array(rows, pa.int32()), pa.array(values, pa.binary()))


def write_parquet(path: Path, table: pa.Table, **options: Any) -> None:
    # without the Arrow schema the column is one of bytes again
    pq.write_table(
        table, path, store_schema=False, dictionary_pagesize_limit=2**30, write_statistics=False, **options
    )


def test_more_labels_than_can_be_counted(tmp_path: Path) -> None:
    path, count = tmp_path / "train.parquet", limits.IMAGES + 1
    labels = pa.array(np.zeros(count, np.int8))
    images = pa.DictionaryArray.from_arrays(labels, pa.array([b"x"], pa.binary()))
    write_parquet(path, pa.table({"image": images, "label": labels}))
    assert path.stat().st_size < MIB
    refused(lambda: data.load(f"parquet:{path}"), "it must have at most 20,000,000 rows", 32 * MIB)


@pytest.mark.parametrize("compression", ["zstd", "gzip", "snappy"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_a_page_that_grows(tmp_path: Path, compression: str, dictionary: bool) -> None:
    path, image = tmp_path / "train.parquet", bytes(128 * MIB)
    images = column([image], [0, 0]) if dictionary else pa.array([image, b""], pa.binary())
    table = pa.table({"image": images, "label": [0, 1]})
    write_parquet(path, table, compression=compression, use_dictionary=dictionary)
    assert path.stat().st_size < 8 * MIB
    del image, images, table
    refused(lambda: data.load(f"parquet:{path}"), "column 'image' must become at most", 32 * MIB)


@pytest.mark.parametrize("name", ["image", "an.image"])
def test_a_page_that_grows_in_a_column_under_another_name(tmp_path: Path, name: str) -> None:
    """Columns count by their place: what their parts call themselves is nothing that readers go by."""
    path, image = tmp_path / "train.parquet", bytes(128 * MIB)
    write_parquet(
        path, pa.table({name: pa.array([image, b""], pa.binary()), "label": [0, 1]}), compression="zstd"
    )
    content = path.read_bytes()
    place = content.rindex(name.encode())
    path.write_bytes(content[:place] + b"other"[: len(name)] + content[place + min(5, len(name)) :])
    del image
    refused(lambda: data.load(f"parquet:{path}"), f"column {name!r} must become at most", 32 * MIB)


@pytest.mark.parametrize("labels", [[0, 2**40], [-(2**40), 2**22], [*range(100_000), 100_000]])
def test_a_label_that_stands_for_millions_of_classes(tmp_path: Path, labels: list[int]) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": [b""] * len(labels), "label": labels}), path)
    refused(lambda: data.load(f"parquet:{path}"), f"labels of parquet:{path} must be below", 32 * MIB)


def test_one_image_in_a_million_rows(tmp_path: Path) -> None:
    path, image = tmp_path / "train.parquet", np.random.default_rng(0).bytes(8 * MIB)
    write_parquet(path, pa.table({"image": column([image], [0] * 1_000_000), "label": [0, 1] * 500_000}))
    assert path.stat().st_size < 10 * MIB
    refused(lambda: data.load(f"parquet:{path}"), "its images must have at most 268,435,456 bytes", 700 * MIB)


def test_a_footer_that_is_the_file(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1")
    os.truncate(path, limits.GIB)
    with path.open("ab") as file:
        file.write(struct.pack("<I", limits.GIB - 8) + b"PAR1")
    refused(lambda: data.load(f"parquet:{path}"), "its footer must have at most 16,777,216 bytes", 32 * MIB)


def test_a_footer_of_many_small_parts(tmp_path: Path) -> None:
    """Of one column each, that says nothing of itself: ten bytes in the file, a kilobyte in memory."""
    path = tmp_path / "train.parquet"
    part, count = b"\x19\x1c\x3c\x00\x00\x00", 1_000_000
    size = bytes([count & 127 | 128, count >> 7 & 127 | 128, count >> 14])
    footer = b"\x49\xfc" + size + part * count + b"\x00"
    path.write_bytes(b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1")
    refused(lambda: data.load(f"parquet:{path}"), "its footer must hold at most 100,000 parts", 32 * MIB)


# -- images --------------------------------------------------------------------------------------------------


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A grey image of a few bytes, whatever its size; chunks: what stands before its pixels."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(b"\x00")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )


def bitmap(side: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 12, 0, 0, 54) + head + bytes(12)


GROWS = zlib.compress(bytes(256 * MIB))
IMAGES = {
    "sixty thousand pixels": (
        png(60_000, 60_000),
        "must have at most 4096 pixels on a side, got over 89,478,485",
    ),
    "ten thousand pixels": (
        png(10_000, 10_000),
        "must have at most 4096 pixels on a side, got over 89,478,485",
    ),
    "a long line": (png(2**31 - 1, 1), "must have at most 4096 pixels on a side"),
    "text": (png(8, 8, (b"zTXt", b"x\x00\x00" + GROWS)), "cannot be decoded"),
    "international text": (png(8, 8, (b"iTXt", b"x\x00\x01\x00\x00\x00" + GROWS)), "cannot be decoded"),
    "colour profile": (png(8, 8, (b"iCCP", b"x\x00\x00" + GROWS)), "cannot be decoded"),
    "a bitmap of twelve bytes": (bitmap(4096), "cannot be decoded"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images(kind: str, place: Callable[[str], Path], tmp_path: Path, begun: Path) -> None:
    content, text = IMAGES[kind]
    assert len(content) < 300_000
    path = place("0.png")
    path.write_bytes(content)
    refused(lambda: data.load(f"folder:{tmp_path}/photos", image_size=8), text, 128 * MIB)


def test_pixels_that_do_not_fit(
    place: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place("0.png")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=100_000_000))
    text = "the pixels of 2 images of 8000 x 8000 must fit into the 100,000,000 bytes of memory that are free"
    refused(lambda: data.load(f"folder:{tmp_path}/photos", image_size=8000), text, 32 * MIB)


def test_idx_files(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").touch()
    os.truncate(raw / "train-images-idx3-ubyte", 10 * limits.GIB)
    refused(
        lambda: data.load("fashion_mnist", data_dir=tmp_path), "must have at most 67,108,864 bytes", 32 * MIB
    )


def test_class_names_of_the_largest_data_sets_are_read(tmp_path: Path, begun: Path) -> None:
    """What the limits must let through: a config.json with 20,000 names."""
    content = json.loads((begun / "config.json").read_text())
    content["environment"]["classes"] = [
        f"class number {number}, a name of some length" for number in range(20_000)
    ]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_settings(tmp_path / "config.json") == read_settings(begun)
