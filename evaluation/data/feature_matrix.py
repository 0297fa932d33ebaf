"""Feature matrices, and the controls that are derived from other features or from metadata."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from evaluation.data.features import RAW_PIXELS_PX
from evaluation.data.samples import Samples
from infra.arrays import Float32, Int64

_BORDER_PX: Final = 3  # of the raw pixels: a tenth of the image on each side


@dataclass(frozen=True)
class FeatureMatrix:
    """Features of all images of a dataset.

    Attributes:
        identity: hash of everything that the values depend on
        values: (N, D)
    """

    identity: str
    values: Float32


def border(pixels: FeatureMatrix) -> FeatureMatrix:
    """Return only the outer raw pixels, which show markers and collimation, but no disease."""
    inside = np.zeros((RAW_PIXELS_PX, RAW_PIXELS_PX), np.bool_)
    inside[_BORDER_PX:-_BORDER_PX, _BORDER_PX:-_BORDER_PX] = True
    return FeatureMatrix(f"border {_BORDER_PX} of {pixels.identity}", pixels.values[:, ~inside.reshape(-1)])


def attributes(samples: Samples, rows: Int64) -> FeatureMatrix | None:
    """Encode view, sex and age as features.

    Args:
        samples: the N samples of a dataset
        rows: (n,) positions of the images of a task

    Returns:
        Features (N, D): one column for each view and each sex, the age in centuries, and whether the age is known.
        Columns that are constant over the task are left out; None if all are.
    """
    columns: list[Float32] = []
    for values in (samples.views, samples.sexes):
        for category in sorted(set(map(str, values))):
            columns.append(np.array([str(value) == category for value in values], np.float32))
    columns.append(np.array([(age or 0.0) / 100 for age in samples.ages], np.float32))
    columns.append(np.array([age is not None for age in samples.ages], np.float32))
    encoded = np.stack(columns, axis=1)
    encoded = encoded[:, (encoded[rows] != encoded[rows][:1]).any(axis=0)]
    digest = hashlib.sha256(encoded.tobytes()).hexdigest()
    return FeatureMatrix(f"attributes {digest}", encoded) if encoded.shape[1] else None


def concatenated(matrices: Mapping[str, FeatureMatrix]) -> FeatureMatrix:
    """Stack the features of several datasets, in the given order."""
    identity = hashlib.sha256("".join(matrix.identity for matrix in matrices.values()).encode()).hexdigest()
    return FeatureMatrix(f"joined {identity}", np.concatenate([matrix.values for matrix in matrices.values()]))
