"""Image data in memory: loading by name, stratified splits, augmentation on the device, resumable batches."""

from sgenas.data.augment import Augmentation, statistics
from sgenas.data.images import ImageData, ImageSet
from sgenas.data.python_dataset import from_dataset
from sgenas.data.sources import KNOWN_SOURCES, limited, load
from sgenas.data.splits import sample_stratified, split_stratified
from sgenas.data.stream import BatchStream, ordered_batches

__all__ = [
    "KNOWN_SOURCES",
    "Augmentation",
    "BatchStream",
    "ImageData",
    "ImageSet",
    "from_dataset",
    "limited",
    "load",
    "ordered_batches",
    "sample_stratified",
    "split_stratified",
    "statistics",
]
