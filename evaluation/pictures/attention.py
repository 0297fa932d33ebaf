"""Attention: where radiographs of the test part hold the evidence for the probe's decision (the paper's Figure 4)."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from evaluation.data.extractor import Extractor
from evaluation.data.joined_sets import ProbedSet
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.pictures.explainer import Explainer, NoMap, direction_of, explainer_of
from evaluation.pictures.picture_folder import PictureFolder
from evaluation.pictures.probed import Probed, Tested
from evaluation.results.picture_records import (
    ATTENTION,
    ATTENTION_VERSION,
    Attention,
    AttentionMap,
    write_pictures_record,
)
from infra.arrays import Bool, Float32, Int64
from infra.rng import uniform

SHOWN: Final = 4  # images of each class
_LOCAL_BATCH: Final = 16  # attention among all patches takes some 20 MB an image


def write_attention(probed: Probed, folder: PictureFolder) -> None:
    """Write `attention.json` and the maps of some correct decisions."""
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
    chosen = np.concatenate([_correct(case, tested, positive, probed.seed) for positive in (True, False)])
    record = replace(
        record,
        method=maps.explainer.method.method,
        cells=list(maps.explainer.method.cells),
        choice=f"Up to {SHOWN} of each class, drawn by seed {probed.seed} among the correct decisions on test images.",
        maps=write_maps(maps, tested, chosen, folder),
    )
    write_pictures_record(folder.path, ATTENTION, record)


@dataclass(frozen=True)
class CaseMaps:
    """Makes maps for the decisions of a probe case.

    Attributes:
        case: the case
        explainer: of its backbone
        directions: (rounds, D) the weights of the features in the logit of each round's classifier
        extractor: reads images as the case's features were extracted
    """

    case: ProbeCase
    explainer: Explainer
    directions: Float32
    extractor: Extractor

    @classmethod
    def of(cls, probed: Probed, case: ProbeCase) -> "CaseMaps":
        """Return the maps of a case of the judged features; raises NoMap if its network has none."""
        source = probed.judged
        extractor = replace(probed.extractor.fitting(source), local_batch=_LOCAL_BATCH)
        explainer = explainer_of(source.backbone(), extractor.preprocessing.size_px, extractor.device)
        classifiers = [probe.classifier for probe in probed.fitted[case] if probe.classifier is not None]
        return cls(case, explainer, np.stack([direction_of([each]) for each in classifiers]), extractor)

    def of_decisions(self, tested: Tested, chosen: Int64) -> Iterator[Float32]:
        """Yield for each chosen test image (m,) the evidence (h, w) for the decision on it.

        That is the evidence for the positive class if the image was called positive, else the evidence against it.
        """
        is_positive = tested.scores[chosen] > tested.thresholds[chosen]
        directions = self.directions[tested.rounds[chosen]] * np.where(is_positive, 1, -1)[:, None].astype(np.float32)
        return self.of_images(self.case.task.labeled_set, tested.rows[chosen], directions)

    def of_images(self, labeled_set: ProbedSet, rows: Int64, directions: Float32) -> Iterator[Float32]:
        """Yield the evidence (h, w) for scores with the weights (m, D) in images (m,) of a set, in ascending order."""
        assert np.all(np.diff(rows) > 0), "images are read in packed order"
        with closing(
            self.extractor.batches(labeled_set.shards, self.extractor.preprocessing.views, numbers=rows)
        ) as batches:
            for number, batch in enumerate(batches):
                first = number * self.extractor.local_batch
                yield from self.explainer.maps(batch.views, directions[first : first + len(batch.rows)])


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
    labeled_set, ascending = maps.case.task.labeled_set, np.sort(chosen)
    made = dict(zip(ascending.tolist(), maps.of_decisions(tested, ascending), strict=True))
    records = []
    images = folder.images(labeled_set, tested.rows[chosen], tested.classes[chosen].tolist())
    for number, image in zip(chosen.tolist(), images, strict=True):
        cells, file = made[number], image.file.replace(".jpg", "-map.jpg")
        folder.write_map(file, cells / max(float(cells.max()), np.finfo(np.float32).tiny), labeled_set)
        records.append(
            AttentionMap(image, float(tested.scores[number]), float(tested.thresholds[number]), file, outside=None)
        )
    return records


def _correct(case: ProbeCase, tested: Tested, positive: bool, seed: int) -> Int64:
    """Return up to SHOWN correctly decided test images of a class, drawn by their identities."""
    correct: Bool = (tested.classes == positive) & ((tested.scores > tested.thresholds) == positive)
    found = np.flatnonzero(correct)
    ids = case.task.labeled_set.samples.ids[tested.rows[found]]
    draws = uniform(seed, "probe-attention", ids, 0, 1)[:, 0]
    return found[np.argsort(draws)[:SHOWN]]
