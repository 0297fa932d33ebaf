"""Metadata of the samples of a labeled dataset."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from infra.arrays import Int64, UInt64


@dataclass(frozen=True)
class Samples:
    """Metadata of a dataset's N samples, in packed order; None for what the dataset does not provide.

    Attributes:
        ids: (N,) hashes of the samples, unique across datasets
        keys: keys of the samples, unique in the dataset
        patient_ids: (N,) hashes of the patients, unique across datasets
        patients: patient names
        splits: official split
        labels: upstream label -> 1 present, 0 absent, -1 uncertain, None not mentioned
        views: projection
        sexes: "F" or "M"
        ages: in years
        sizes: (N, 2) height and width of the packed images, in pixels
        source_sizes: (N, 2) height and width of the images before packing, 0 if unknown
        file_bytes: (N,) size of the packed images
    """

    ids: UInt64
    keys: list[str]
    patient_ids: UInt64
    patients: list[str]
    splits: list[str | None]
    labels: list[dict[str, int | None]]
    views: list[str | None]
    sexes: list[str | None]
    ages: list[float | None]
    sizes: Int64
    source_sizes: Int64
    file_bytes: Int64

    def followed_by(self, others: "Samples") -> "Samples":
        """Return these samples and others behind them."""
        columns: dict[str, Any] = {}
        for field in fields(Samples):
            first, second = getattr(self, field.name), getattr(others, field.name)
            is_array = isinstance(first, np.ndarray)
            columns[field.name] = np.concatenate([first, second]) if is_array else [*first, *second]
        return Samples(**columns)
