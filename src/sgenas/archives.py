"""Archives from strangers: arrays (npz) and tensors (what torch.save writes), both zip files.

Nothing is unpacked before it is known how much there is of it, and no code ever comes out of one.
"""

import io
import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from sgenas import limits
from sgenas.errors import RunFolderError, one_line
from sgenas.pickles import read_pickle
from sgenas.reading import opened


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file, none of them pickled.

    Sizes are looked at before anything is allocated: a header may claim any shape, and a few packed bytes
    may grow without end. Raises RunFolderError when the file cannot be read, is damaged or has, packed or
    unpacked, more than limits.ARRAYS bytes.
    """
    try:
        with opened(path, limits.ARRAYS) as file, zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            size = sum(record.file_size for record in records)
            if size > limits.ARRAYS:
                raise ValueError(f"its arrays must have at most {limits.ARRAYS:,} bytes, got {size:,}")
            return {record.filename.removesuffix(".npy"): _array(archive, record) for record in records}
    except Exception as error:
        # from the zip reader, the decompressors and numpy, in a dozen types
        raise RunFolderError(f"{path} cannot be read: {one_line(error)}") from None


def _array(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> NDArray[Any]:
    # the other decompressors of zipfile take all that there is, whatever is asked for
    if record.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{record.filename} must be stored or deflated, got {record.compress_type}")
    with archive.open(record) as file:
        # read() would unpack everything at once, and only then look at the size that was claimed
        content = file.read(record.file_size + 1)
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"npy format {version} is not known")
    shape, _, dtype = readers[version](stream)
    if dtype.itemsize == 0:
        raise ValueError(f"an array must have numbers, got the type {dtype}, which has no bytes")
    declared, there = math.prod(shape) * dtype.itemsize, len(content) - stream.tell()
    if declared != there:
        raise ValueError(f"an array must have the {declared} bytes of its shape {shape}, got {there}")
    stream.seek(0)
    found: NDArray[Any] = np.load(stream, allow_pickle=False)
    return found


PIECE = 2**20
"""Bytes of a part that are read at a time."""


def read_tensors(file: BinaryIO) -> Any:
    """What torch.save wrote into `file`, tensors on the CPU, without ever running code from it.

    It takes as much memory as the file has bytes: whatever is packed, claims more than there is, or makes
    anything but tensors and plain data is refused. torch.load is not asked: it reads archives otherwise than
    zipfile does where they contradict themselves, so that what was checked need not be what it loads. Raises
    ValueError for that, and whatever the readers raise for a damaged file.
    """
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        for record in records:
            if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
                raise ValueError(f"{record.filename} must be stored as it is, got it packed")
        size, claimed = file.seek(0, io.SEEK_END), sum(record.file_size for record in records)
        if claimed > size:
            raise ValueError(f"its parts must have at most its own {size:,} bytes, got {claimed:,}")
        pickled = [record for record in records if record.filename.endswith("/data.pkl")]
        if len(pickled) != 1:
            raise ValueError(f"it must have one data.pkl, got {len(pickled)}")
        if pickled[0].file_size > limits.PICKLE:
            raise ValueError(
                f"data.pkl must have at most {limits.PICKLE:,} bytes, got {pickled[0].file_size:,}"
            )
        folder = pickled[0].filename.removesuffix(".pkl")

        def part(key: str, length: int) -> torch.Tensor:
            record = archive.getinfo(f"{folder}/{key}")
            if record.file_size != length:
                raise ValueError(
                    f"a tensor must have the bytes of {record.filename}, {record.file_size:,}, got {length:,}"
                )
            content = torch.empty(length, dtype=torch.uint8)
            there, place = content.numpy(), 0
            with archive.open(record) as stored:
                while piece := stored.read(PIECE):
                    there[place : place + len(piece)] = np.frombuffer(piece, np.uint8)
                    place += len(piece)
            if place != length:
                raise ValueError(f"{record.filename} must have {length:,} bytes, got {place:,}")
            return content

        return read_pickle(archive.read(pickled[0]), part)
