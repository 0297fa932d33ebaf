"""The images that second views show: the samples, or siblings as `views.second_from` says."""

from typing import Final

import numpy as np

from infra.arrays import Float64
from infra.configuration.options import key, setting
from infra.errors import require
from sharding.reading.shard_set import ShardSet
from sharding.reading.siblings import Same, Siblings
from sharding.reading.stream import packed_metadata
from ssl_core.views.spec import MOST_DAYS, SecondFrom, ViewSpec

_SAME: Final[dict[SecondFrom, Same]] = {"same_study": "study", "same_patient": "patient"}


def siblings_of(spec: ViewSpec, shards: ShardSet, seed: int) -> Siblings | None:
    """Return what draws the siblings of a run; None if all views show the sample.

    With `views.second_days`, the metadata of all samples are read, and thus all shards.

    Args:
        spec: options of the views
        shards: the samples of the run
        seed: seed of the run

    Raises:
        UserError: if no sample has a sibling, or days are asked for and no sample has one
        RunFailed: if metadata are damaged, or something remote cannot be downloaded
    """
    same = _SAME.get(spec.second_from)
    if same is None:
        return None
    if spec.second_days is None:
        siblings = Siblings(shards, same, spec.second_probability, seed)
        found = f"no {same} of two images in one split"
    else:
        siblings = Siblings(shards, same, spec.second_probability, seed, _days(spec, shards), spec.second_days)
        found = f"no two images of a {same} in one split within {setting(spec, 'second_days')}"
    way_out = f"try {key(spec, 'second_from')}=same_patient" if same == "study" else "pack them with their patients"
    require(
        bool(siblings.has_any.any()),
        f"{setting(spec, 'second_from')} finds {found}; {way_out}, or leave it out",
    )
    return siblings


def _days(spec: ViewSpec, shards: ShardSet) -> Float64:
    """Return the day of each sample (samples,) in packed order, NaN if unknown or no day that packing writes."""
    days = np.array([metadata.get("day", np.nan) for metadata in packed_metadata(shards)], np.float64)
    days[np.abs(days) > MOST_DAYS] = np.nan
    require(
        not np.isnan(days).all(),
        f"{setting(spec, 'second_days')} needs the days of images, which these shards do not hold; pack them with "
        f"folder.day, webdataset.day or dicom.days, or leave {key(spec, 'second_days')} out",
    )
    return days
