"""The folder of pictures while it is written: radiographs and maps as gray JPEGs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from evaluation.data.extractor import Extractor
from evaluation.data.joined_sets import JoinedSets, ProbedSet
from evaluation.pictures.radiographs import enlarged, gray_levels, radiographs, side_px
from evaluation.results.picture_records import PicturedImage
from infra.arrays import Float32, Int64, UInt8

_QUALITY: Final = 85


@dataclass(frozen=True)
class PictureFolder:
    """Writes pictures of images, each once, whatever record names it.

    Attributes:
        path: the folder, which exists
        extractor: reads images as the probe did
    """

    path: Path
    extractor: Extractor

    def images(
        self, labeled_set: ProbedSet, rows: Int64, labels: Sequence[int | None] | None = None
    ) -> list[PicturedImage]:
        """Write the chosen images of a set that are not there yet.

        Args:
            labeled_set: the set
            rows: (n,) the images, in any order
            labels: (n,) classes of the images; by default none

        Returns:
            The record of each image, in the order of `rows`.

        Raises:
            RunFailed: if an image is damaged
            UserError: if the disk is full
        """
        known = labels or [None] * len(rows)
        records = [self._record(labeled_set, row, label) for row, label in zip(rows.tolist(), known, strict=True)]
        files = dict(zip(rows.tolist(), (record.file for record in records), strict=True))
        missing = np.array(sorted(row for row, file in files.items() if not (self.path / file).exists()), np.int64)
        side = side_px(labeled_set)
        for row, pixels in zip(missing.tolist(), radiographs(self.extractor, labeled_set, missing, side), strict=True):
            self.write_gray(files[row], pixels)
        return records

    def write_map(self, file: str, cells: Float32, labeled_set: ProbedSet) -> None:
        """Write a map (h, w) of values from 0 in the size of the set's images; its largest value becomes white."""
        self.write_gray(file, gray_levels(enlarged(cells, side_px(labeled_set))))

    def write_gray(self, file: str, pixels: UInt8) -> None:
        """Write a gray image (H, W); the folder appears as a whole, so its files need not."""
        Image.fromarray(pixels).save(self.path / file, "JPEG", quality=_QUALITY)

    @staticmethod
    def _record(labeled_set: ProbedSet, row: int, label: int | None) -> PicturedImage:
        samples = labeled_set.samples
        return PicturedImage(
            dataset=_label(labeled_set, row),
            split=samples.splits[row],
            key=samples.keys[row],
            patient=f"{samples.patient_ids[row]:016x}",
            label=label,
            view=samples.views[row],
            sex=samples.sexes[row],
            age=samples.ages[row],
            file=f"{samples.ids[row]:016x}.jpg",
        )


def _label(labeled_set: ProbedSet, row: int) -> str:
    """Return the label of the set that an image is of, which may be one of two joined sets."""
    if not isinstance(labeled_set, JoinedSets):
        return labeled_set.label
    return (labeled_set.tested if labeled_set.is_tested[row] else labeled_set.fitted).label
