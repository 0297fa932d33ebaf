"""Feature matrices, and the controls that are derived from other features."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from evaluation.data.features import RAW_PIXELS_PX
from infra.arrays import Float32

_BORDER_PX: Final = 3  # of the raw pixels: a tenth of the image on each side


@dataclass(frozen=True)
class FeatureMatrix:
    """Features of all images of a dataset.

    Attributes:
        identity: hash of everything that the values depend on
        values: (N, D)
        first: identity of the features whose rows come first, if these are joined; "" if they are not
    """

    identity: str
    values: Float32
    first: str = ""


def border(pixels: FeatureMatrix) -> FeatureMatrix:
    """Return only the outer raw pixels, which show markers and collimation, but no disease."""
    inside = np.zeros((RAW_PIXELS_PX, RAW_PIXELS_PX), np.bool_)
    inside[_BORDER_PX:-_BORDER_PX, _BORDER_PX:-_BORDER_PX] = True
    return FeatureMatrix(f"border {_BORDER_PX} of {pixels.identity}", pixels.values[:, ~inside.reshape(-1)])


def concatenated(matrices: Mapping[str, FeatureMatrix]) -> FeatureMatrix:
    """Stack the features of several datasets, in the given order."""
    identities = [matrix.identity for matrix in matrices.values()]
    identity = f"joined {hashlib.sha256(''.join(identities).encode()).hexdigest()}"
    return FeatureMatrix(identity, np.concatenate([matrix.values for matrix in matrices.values()]), identities[0])
