"""Labeled images in memory: sources by name, stratified splits, augmentation, resumable batches."""

from sgenas.data import digits, downloads, folder, parquet  # noqa: F401  they register
from sgenas.data.augmentation import Augmentation, statistics
from sgenas.data.batches import BatchStream, balanced, ordered_batches
from sgenas.data.images import ImageData, ImageSet
from sgenas.data.python_dataset import from_dataset
from sgenas.data.settings import (
    ImageSettings,
    SearchImageSettings,
    TrainImageSettings,
    absolute_paths,
    load_images,
    make_augmentation,
    make_class_weights,
)
from sgenas.data.sources import DATASET_SOURCES, DatasetSource, LoadRequest, load
from sgenas.data.splits import sample_stratified, split_stratified
from sgenas.data.summary import DatasetSummary, summarize

__all__ = [
    "DATASET_SOURCES",
    "Augmentation",
    "BatchStream",
    "DatasetSource",
    "DatasetSummary",
    "ImageData",
    "ImageSet",
    "ImageSettings",
    "LoadRequest",
    "SearchImageSettings",
    "TrainImageSettings",
    "absolute_paths",
    "balanced",
    "from_dataset",
    "load",
    "load_images",
    "make_augmentation",
    "make_class_weights",
    "ordered_batches",
    "sample_stratified",
    "split_stratified",
    "statistics",
    "summarize",
]
