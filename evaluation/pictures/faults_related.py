"""The images beside a fault: those most like it in its training part, others of its patient, and of its picture."""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from evaluation.fitting.probe_cases import ProbeCase
from evaluation.inference.neighbors import nearest
from evaluation.pictures.probed import Tested
from infra.arrays import Float32, Int64

_MOST: Final = 3  # images of each relation


class Alike(NamedTuple):
    """Images by their rows in the set, with the cosines of their features to those of a fault.

    Attributes:
        cosines: row -> cosine, the most similar first
        left_out: how many more there are
    """

    cosines: dict[int, float]
    left_out: int


class Related(NamedTuple):
    """The images beside a fault.

    Attributes:
        fitted: of those that its classifier was fitted to
        of_patient: others of its patient
        of_picture: others that show its picture
    """

    fitted: Alike
    of_patient: Alike
    of_picture: Alike

    @property
    def rows(self) -> list[int]:
        """Rows of all of them."""
        return [row for alike in self for row in alike.cosines]


def related_images(case: ProbeCase, tested: Tested, pictures: Int64, shown: Int64) -> Iterator[Related]:
    """Yield the images beside each of some tested images.

    Args:
        case: the judged features on the question
        tested: the test images
        pictures: (N,) one code for all images of the set that show the same picture
        shown: (k,) which of the tested images
    """
    values, patients = case.matrix.values, case.task.labeled_set.patients
    fitted = _of_fitted(case, tested, shown)
    for number, row in zip(shown.tolist(), tested.rows[shown].tolist(), strict=True):
        of_patient, of_picture = (_of_code(values, row, codes) for codes in (patients, pictures))
        yield Related(fitted[number], of_patient, of_picture)


def _of_fitted(case: ProbeCase, tested: Tested, shown: Int64) -> dict[int, Alike]:
    """Return the images most like each one among those that its classifier was fitted to; each round is read once."""
    values, found = case.matrix.values, dict[int, Alike]()
    for of_round in np.unique(tested.rounds[shown]).tolist():
        inside = shown[tested.rounds[shown] == of_round]
        rows, cosines = nearest(values[tested.rows[inside]], values, case.rows[case.folds[of_round] >= 0], _MOST)
        for number, *of_image in zip(inside.tolist(), rows.tolist(), cosines.tolist(), strict=True):
            found[number] = Alike(dict(zip(*of_image, strict=True)), 0)
    return found


def _of_code(values: Float32, row: int, codes: Int64) -> Alike:
    """Return the images most like one among all others with its code; `codes` is (N,)."""
    others = np.setdiff1d(np.flatnonzero(codes == codes[row]), row)
    [rows], [cosines] = nearest(values[[row]], values, others, _MOST)
    return Alike(dict(zip(rows.tolist(), cosines.tolist(), strict=True)), len(others) - len(rows))
