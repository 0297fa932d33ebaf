"""Which labeled sets are probed by themselves, and which are tested by classifiers of another set."""

from collections.abc import Sequence

from evaluation.data.joined_sets import JoinedSets
from evaluation.data.labeled_sets import LabeledSet, ProbeData
from evaluation.results.task_file import near
from infra.configuration.options import key
from infra.errors import UserError, require


def choose_sets(
    labeled_sets: Sequence[LabeledSet], train_on: str | None, test_on: Sequence[str]
) -> tuple[list[LabeledSet], list[JoinedSets]]:
    """Return the sets that are probed by themselves, and the pairs of a fitted and a tested set.

    Args:
        labeled_sets: the opened sets
        train_on: name of the set that classifiers are fitted to; None if every set is probed by itself
        test_on: names of the sets that are tested, by default all others; the fitted set is tested on its own test part

    Raises:
        UserError: if a name is that of no set, there is no other set, or a set has no part in the probe
    """
    if train_on is None:
        return list(labeled_sets), []
    fitted = _named(labeled_sets, "train_on", train_on)
    others = [item for item in labeled_sets if item.label != fitted.label]
    tested = [_named(labeled_sets, "test_on", name) for name in test_on] or others
    labels = [item.label for item in tested]
    shards = key(ProbeData, "shards")
    require(bool(tested), f"train_on={train_on} needs another set to test on; add its folder to {shards}")
    unused = next((item.label for item in others if item.label not in labels), None)
    require(
        unused is None,
        f"neither train_on nor test_on names {unused!r}, which {shards} holds; add it to test_on, or leave it out",
    )
    joined = [JoinedSets(fitted, item) for item in tested if item.label != fitted.label]
    return [fitted] if fitted.label in labels else [], joined


def _named(labeled_sets: Sequence[LabeledSet], option: str, name: str) -> LabeledSet:
    for item in labeled_sets:
        if name in (item.label, item.manifest.name):
            return item
    names = [item.manifest.name for item in labeled_sets]
    raise UserError(
        f"{option}={name} is none of the sets in {key(ProbeData, 'shards')}{near(name, names)}; these are "
        f"{', '.join(names)}"
    )
