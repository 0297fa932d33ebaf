"""Attention: where radiographs of the test part hold the evidence for the probe's decision (the paper's Figure 4)."""

from dataclasses import replace
from typing import Final

import numpy as np

from evaluation.pictures.case_maps import CaseMaps
from evaluation.pictures.explainer import NoMap
from evaluation.pictures.lung_region import OUTSIDE, outside_estimate, outside_of
from evaluation.pictures.picture_folder import PictureFolder
from evaluation.pictures.probed import Probed, Tested
from evaluation.pictures.weight_randomization import randomized
from evaluation.results.picture_records import (
    ATTENTION,
    ATTENTION_VERSION,
    Attention,
    AttentionMap,
    OutsideShare,
    write_pictures_record,
)
from infra.arrays import Int64

SHOWN: Final = 4  # images of each class
_MEASURED: Final = 2000  # images whose attention outside is measured
_RANDOMIZED: Final = 64  # images whose maps are made again with random weights


def write_attention(probed: Probed, folder: PictureFolder) -> None:
    """Write `attention.json`, with the maps of some correct decisions and what is to be thought of such maps."""
    case = probed.primary
    record = Attention(
        ATTENTION_VERSION,
        *case.key,
        case.name,
        positive=case.task.record.positive,
        negative=case.task.record.negative,
    )
    try:
        maps = CaseMaps.of(probed, case)
    except NoMap as reason:
        write_pictures_record(folder.path, ATTENTION, replace(record, left_out=str(reason)))
        return
    tested = probed.tested(case)
    correct = [np.flatnonzero((tested.classes == label) & (tested.is_positive == label)) for label in (1, 0)]
    chosen = np.concatenate([probed.drawn(case, tested, of_class, SHOWN, "attention") for of_class in correct])
    measured = probed.drawn(case, tested, np.arange(len(tested.rows)), _MEASURED, "attention-outside")
    record = replace(
        record,
        method=maps.explainer.method.method,
        cells=list(maps.explainer.method.cells),
        choice=f"Up to {SHOWN} of each class, drawn by seed {probed.seed} among the correct decisions on test images.",
        maps=write_maps(maps, tested, chosen, folder),
        randomized=randomized(probed, maps, tested, measured[:_RANDOMIZED]),
        outside=_outside(probed, maps, measured),
        outside_region=f"{OUTSIDE} Measured on {_sample(len(measured), len(tested.rows), probed.seed)}.",
    )
    write_pictures_record(folder.path, ATTENTION, record)


def write_maps(maps: CaseMaps, tested: Tested, chosen: Int64, folder: PictureFolder) -> list[AttentionMap]:
    """Write images and maps of test images.

    Args:
        maps: makes the maps
        tested: the test images of the case
        chosen: (m,) which of them, in any order
        folder: the folder of pictures

    Returns:
        A record for each, in the order of `chosen`.
    """
    labeled_set = maps.case.task.labeled_set
    made = maps.of_decisions(tested, chosen)
    shares, _ = outside_of(made, labeled_set.samples.sizes[tested.rows[chosen]], maps.extractor.preprocessing.fit)
    images = folder.images(labeled_set, tested.rows[chosen], tested.classes[chosen].tolist())
    records = []
    for number, image, cells, share in zip(chosen.tolist(), images, made, shares.tolist(), strict=True):
        file = image.file.replace(".jpg", "-map.jpg")
        folder.write_map(file, cells, labeled_set)
        score, threshold = float(tested.scores[number]), float(tested.thresholds[number])
        records.append(AttentionMap(image, score, threshold, file, None if np.isnan(share) else share))
    return records


def _outside(probed: Probed, maps: CaseMaps, measured: Int64) -> list[OutsideShare]:
    """Measure the attention outside of the lungs' usual place, of the judged backbone and of an untrained one."""
    task = maps.case.task
    untrained = next((case for case in probed.cases if case.kind == "untrained" and case.task is task), None)
    of_cases = [maps] if untrained is None else [maps, CaseMaps.of(probed, untrained)]
    return [outside_estimate(probed, each, probed.tested(each.case), measured) for each in of_cases]


def _sample(count: int, total: int, seed: int) -> str:
    return "all test images" if count == total else f"{count} of {total} test images, drawn by seed {seed}"
