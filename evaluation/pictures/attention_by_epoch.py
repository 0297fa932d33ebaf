"""Attention in TensorBoard: the same test images for each checkpoint, while a run trains and after it."""

from typing import Final

import numpy as np

from evaluation.fitting.probe_cases import ProbeCase
from evaluation.pictures.case_maps import CaseMaps
from evaluation.pictures.overlay import overlay
from evaluation.pictures.probed import Probed
from evaluation.pictures.radiographs import radiographs, side_px
from infra.arrays import UInt8

SHOWN: Final = 4  # images of each class


def attention_picture(probed: Probed, case: ProbeCase) -> UInt8:
    """Return some test images with the evidence for their own class, (height, width, 3).

    The images depend on the seed alone, so each checkpoint shows the same ones: a row of positives above one of
    negatives. In a cross-validation, each map goes through the classifier that did not see the image.

    Raises:
        NoMap: if the network has no maps
        RunFailed: if an image is damaged
    """
    maps, tested, labeled_set = CaseMaps.of(probed, case), probed.tested(case), case.task.labeled_set
    rows = []
    for label in (1, 0):
        of_class = np.flatnonzero(tested.classes == label)
        chosen = np.sort(probed.drawn(case, tested, of_class, SHOWN, "attention-by-epoch"))
        images = radiographs(probed.extractor, labeled_set, tested.rows[chosen], side_px(labeled_set))
        evidence = maps.of_classes(tested, chosen, tested.classes[chosen] == 1)
        pictures = [
            overlay((image / 255).astype(np.float32), cells) for image, cells in zip(images, evidence, strict=True)
        ]
        blank = [np.zeros_like(pictures[0])] * (SHOWN - len(pictures))
        rows.append(np.concatenate([*pictures, *blank], axis=1))
    return np.concatenate(rows)
