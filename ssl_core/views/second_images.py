"""The images that second views show: the samples, or siblings as `views.second_from` says."""

from typing import Final

from infra.errors import require
from infra.options import key, setting
from sharding.reading.shard_set import ShardSet
from sharding.reading.siblings import Same, Siblings
from ssl_core.views.spec import SecondFrom, ViewSpec

_SAME: Final[dict[SecondFrom, Same]] = {"same_study": "study", "same_patient": "patient"}


def siblings_of(spec: ViewSpec, shards: ShardSet, seed: int) -> Siblings | None:
    """Return what draws the siblings of a run; None if all views show the sample.

    Args:
        spec: options of the views
        shards: the samples of the run
        seed: seed of the run

    Raises:
        UserError: if no sample has a sibling
        RunFailed: if the index of a remote shard cannot be downloaded
    """
    same = _SAME.get(spec.second_from)
    if same is None:
        return None
    siblings = Siblings(shards, same, spec.second_probability, seed)
    way_out = f"try {key(spec, 'second_from')}=same_patient" if same == "study" else "pack them with their patients"
    require(
        bool(siblings.has_any.any()),
        f"{setting(spec, 'second_from')} finds no {same} of two images in one split; {way_out}, or leave it out",
    )
    return siblings
