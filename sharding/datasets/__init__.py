"""Readers: each a function from a dataset's root folder to its samples, checked against the layout upstream ships.

A table or folder tree that is not the dataset, or that contradicts itself, is a UserError; a single row or file that
names no packable image is a Rejection, so that it is counted and not lost. Readers open no image.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from sharding.datasets import cell, chestxray14, chexpert
from sharding.manifest import Rejection
from sharding.sample import Sample

# A root that holds this file was drawn by a program (sharding.datasets.simulated), whatever dataset it looks like.
SIMULATED_MARKER: Final = "SIMULATED.txt"

READERS: Final[dict[str, Callable[[Path], Iterator[Sample | Rejection]]]] = {
    "chexpert": chexpert.read,
    "chestxray14": chestxray14.read,
    "cell": cell.read,
}
