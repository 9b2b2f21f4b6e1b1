"""How many bytes of a file are read, by kind: an honest one stays far below, and whatever a larger one would
unpack to never reaches the memory.

JSON takes up to thirty times its size as Python objects, which these limits take into account.
"""

KIB, MIB, GIB = 2**10, 2**20, 2**30

GENOTYPE = MIB
"""Cells of a hundred nodes with every edge that is allowed have a few hundred kB, published ones 2 kB."""
SETTINGS = 4 * MIB
"""config.json, grid.json, outcome.json and latency tables: 20,000 class names are 1 MB."""
PLACES = 20_000
"""Runs of a grid: the settings of a thousand take a second to make."""
METRICS = 128 * MIB
"""metrics.jsonl: half a million rows, such as 600 epochs of CIFAR-10 with every step logged."""
MEASUREMENTS = 32 * MIB
"""lab.json; the largest so far has 300 kB."""
TABLE = 32 * MIB
"""The CSV of NAS-Bench-201, which has 1.7 MB."""
ARRAYS = 32 * MIB
"""alphas.npz, and its arrays once unpacked; an epoch of DARTS takes 8 kB."""
TENSORS = 16 * GIB
"""A checkpoint: larger than the memory that a search of today has for its weights. Nothing in it is packed,
so that it takes no more memory than it has bytes."""
PICKLE = 8 * MIB
"""The description of a checkpoint's tensors and plain values, some 150 bytes each."""
IMAGE = 256 * MIB
"""An encoded image: the largest that is decoded (4,096 pixels a side, 4 channels of 16 bits) without any
compression, and as much again for what stands beside the pixels."""
IDX = 64 * MIB
"""A file of Fashion-MNIST, which has 47 MB."""
IMAGES = 20_000_000
"""Rows of a parquet file: more than any data set of labelled images has, and few enough to count."""
CLASSES = 100_000
"""Classes that have numbers for names, as many as the largest label says; ImageNet-21k has 21,841."""
FOOTER = 16 * MIB
"""The description at the end of a parquet file, some 200 bytes for each column of each of its parts."""
CHUNKS = 100_000
"""Parts of a parquet file and columns of these, each a few objects in memory: what 16 MiB honestly have."""
UNPACKED = 20
"""How many times larger than it is stored a page, or all images, of a parquet file may be once unpacked:
encoded images are compressed already."""
PAGE = 64 * MIB
"""Bytes that a page of a parquet file may become in any case; writers aim at 1 MB."""
PARQUET = 256 * MIB
"""Bytes that all images of a parquet file together may become in any case."""
