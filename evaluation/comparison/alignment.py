"""The check that all runs of a comparison are tested on the same images, and their order."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from evaluation.comparison.tested_runs import TestedImages
from infra.arrays import Bool, Int64
from infra.errors import UserError
from sharding.format.sample import key_of_path

_EXAMPLES = 3


def aligned(runs: Sequence[tuple[Path, TestedImages]]) -> list[TestedImages]:
    """Return the images of each run in the order of the first run.

    Raises:
        UserError: if the images, test parts, labels or patients of two runs differ; the message counts them.
    """
    reference, first = runs[0]
    return [first, *(_like(reference, first, path, images) for path, images in runs[1:])]


def _like(reference: Path, first: TestedImages, path: Path, images: TestedImages) -> TestedImages:
    """Return the images of a run in the order of the reference."""
    if images.has_paths and not first.has_paths:
        images = _by_key(first, images)
    ours, theirs = (list(zip(item.keys, item.folds.tolist(), strict=True)) for item in (first, images))
    rows = {image: row for row, image in enumerate(theirs)}
    missing = [image for image in ours if image not in rows]
    surplus = sorted(set(theirs) - set(ours))
    if missing or surplus:
        same_keys = set(first.keys) == set(images.keys)
        what = "test parts of the images" if same_keys else "test images"
        counts = [
            f"{len(items)} of {total} are only in {owner}{_named([key for key, _ in items])}"
            for items, total, owner in ((missing, len(ours), reference), (surplus, len(theirs), path))
            if items
        ]
        raise UserError(f"the {what} of {reference} and {path} differ: {'; '.join(counts)}; compare the same images")
    order = np.array([rows[image] for image in ours])
    ordered = replace(
        images,
        keys=first.keys,
        folds=first.folds,
        patients=images.patients[order],
        labels=images.labels[order],
        scores=images.scores[order],
    )
    _require_none(reference, path, "labels", first.keys, ordered.labels != first.labels)
    _require_none(reference, path, "patients", first.keys, _regrouped(first.patients, ordered.patients))
    return replace(ordered, patients=first.patients)


def _by_key(first: TestedImages, images: TestedImages) -> TestedImages:
    """Return images that a file names by their paths with the keys that packing gave to these paths, where known."""
    known = set(first.keys)
    return replace(images, keys=[_key(path, known) for path in images.keys])


def _key(path: str, known: set[str]) -> str:
    """Return the known key of a path below any folder, else the path itself.

    A key is the hash of the path below the dataset's root, or its last parts joined without the suffix.
    """
    parts = PurePosixPath(path).parts
    for number in range(1, len(parts) + 1):
        below = Path(*parts[-number:])
        for key in (key_of_path(below), "_".join(below.with_suffix("").parts)):
            if key in known:
                return key
    return path


def _regrouped(ours: Int64, theirs: Int64) -> Bool:
    """Return (m,) whether an image is together with other images than in the reference, whatever the codes."""
    pairs = np.unique(np.stack([ours, theirs]), axis=1)
    torn = [codes[counts > 1] for codes, counts in (np.unique(side, return_counts=True) for side in pairs)]
    differs: Bool = np.isin(ours, torn[0]) | np.isin(theirs, torn[1])
    return differs


def _require_none(reference: Path, path: Path, what: str, keys: Sequence[str], differs: Bool) -> None:
    if differs.any():
        names = _named([keys[row] for row in np.flatnonzero(differs).tolist()])
        raise UserError(
            f"the {what} of {reference} and {path} differ for {differs.sum()} of {len(differs)} test images{names}; "
            "compare runs that were tested alike"
        )


def _named(keys: Sequence[str]) -> str:
    """Return the first keys in parentheses."""
    return f" ({', '.join(keys[:_EXAMPLES])}{', ...' if len(keys) > _EXAMPLES else ''})"
