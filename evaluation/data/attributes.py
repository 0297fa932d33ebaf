"""What is known of an image without its picture: metadata, its size, and how bright it is; as a control's features."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.data.feature_matrix import FeatureMatrix
from evaluation.data.samples import Samples
from infra.arrays import Float64, Int64

Attributes = Mapping[str, Float64]  # name -> (N,) its value for each sample, NaN where it is unknown


def metadata_attributes(samples: Samples) -> Attributes:
    """Return one attribute for each view and each sex, 1 or 0, and the age in centuries."""
    return {
        **_categories("view", samples.views),
        **_categories("sex", samples.sexes),
        "age": np.array([np.nan if age is None else age / 100 for age in samples.ages]),
    }


def _categories(name: str, values: Sequence[str | None]) -> dict[str, Float64]:
    categories = sorted({value or "unknown" for value in values})
    return {
        f"{name} {category}": np.array([float((value or "unknown") == category) for value in values])
        for category in categories
    }


def image_attributes(samples: Samples, pixels: FeatureMatrix) -> Attributes:
    """Return the size of the source in thousands of pixels, its aspect, the file's size, and the gray level.

    Args:
        samples: the N samples
        pixels: their raw pixels (N, 1024), which give mean and standard deviation of the gray level
    """
    heights, widths = np.where(samples.source_sizes > 0, samples.source_sizes, np.nan).T / 1000
    return {
        "source height": heights,
        "source width": widths,
        "source width / height": widths / heights,
        "file bytes per pixel": samples.file_bytes / np.prod(samples.sizes, axis=1),
        "mean gray level": pixels.values.mean(axis=1, dtype=np.float64),
        "SD of gray level": pixels.values.std(axis=1, dtype=np.float64),
    }


def encode_attributes(attributes: Attributes, rows: Int64) -> FeatureMatrix | None:
    """Return attributes as features.

    Args:
        attributes: the attributes of N samples
        rows: (n,) positions of the images of a task

    Returns:
        Features (N, D): each attribute, 0 where it is unknown, and whether it is known. Columns that are constant over
        the task are left out; None if all are.
    """
    values = np.stack(list(attributes.values()), axis=1)
    known = np.unique(np.isfinite(values), axis=1)  # once for attributes that come together
    encoded = np.concatenate([np.nan_to_num(values), known], axis=1).astype(np.float32)
    encoded = encoded[:, (encoded[rows] != encoded[rows][:1]).any(axis=0)]
    digest = hashlib.sha256(encoded.tobytes()).hexdigest()
    return FeatureMatrix(f"attributes {digest}", encoded) if encoded.shape[1] else None
