"""Image data in memory: loading by name, stratified splits, augmentation on the device, resumable batches."""

from sgenas.data.augment import Augmentation, statistics
from sgenas.data.images import ImageData, ImageSet
from sgenas.data.sources import KNOWN_SOURCES, load
from sgenas.data.splits import sample_stratified, split_stratified
from sgenas.data.stream import BatchStream, ordered_batches

__all__ = [
    "KNOWN_SOURCES",
    "Augmentation",
    "BatchStream",
    "ImageData",
    "ImageSet",
    "load",
    "ordered_batches",
    "sample_stratified",
    "split_stratified",
    "statistics",
]
