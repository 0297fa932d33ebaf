"""Error rates, and the test images that a probe called wrongly with the images beside them: the paper's figure 5."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from evaluation.data.division import UNUSED
from evaluation.data.image_groups import picture_groups
from evaluation.fitting.case_list import last_case
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.pictures.case_maps import CaseMaps
from evaluation.pictures.explainer import NoMap
from evaluation.pictures.faults_related import Alike, Related, related_images
from evaluation.pictures.picture_folder import PictureFolder
from evaluation.pictures.probed import Probed, Tested
from evaluation.results.fault_records import (
    FAULTS,
    FAULTS_VERSION,
    ErrorRates,
    Fault,
    Faults,
    Part,
    QuestionFaults,
    RelatedImage,
)
from evaluation.results.picture_records import PicturedImage, write_pictures_record
from evaluation.scoring.error_rates import error_rates
from evaluation.scoring.probe_results import predict, tested_rows
from evaluation.scoring.subgroups import people_groups, size_groups
from infra.arrays import Int64
from infra.rng import stable_hash

_MOST_OF_KIND: Final = 6  # false positives of a question, and false negatives
_MOST_OF_ALL: Final = 36  # faults of all questions, so that the folder and the page stay small


def write_faults(probed: Probed, folder: PictureFolder) -> None:
    """Write `faults.json`: error rates of all questions and presets, and the faults of the primary task's questions."""
    judged = list(_judged_cases(probed))
    primary = probed.primary
    pictures = picture_groups(primary.task.labeled_set, probed.extractor.folder)
    questions = [case for case in judged if _task_of(case) == _task_of(primary)]
    most = max(1, min(_MOST_OF_KIND, _MOST_OF_ALL // (2 * len(questions))))
    faults = Faults(
        FAULTS_VERSION,
        rates=[_rates(probed, case) for case in judged],
        questions=[_question_faults(probed, case, pictures, most, folder) for case in questions],
    )
    write_pictures_record(folder.path, FAULTS, faults)


def _judged_cases(probed: Probed) -> Iterator[ProbeCase]:
    """Yield the case of the judged features on each question by each preset."""
    for task in dict.fromkeys(case.task for case in probed.cases):
        case = last_case(probed.cases, next(case for case in probed.cases if case.task is task))
        if case is not None:
            yield case


def _task_of(case: ProbeCase) -> tuple[str, str]:
    return case.task.record.task_label, case.key.preset


def _rates(probed: Probed, case: ProbeCase) -> ErrorRates:
    samples, rows = case.task.labeled_set.samples, tested_rows(case)
    groups = error_rates(
        predict(case, probed.fitted[case]),
        {**people_groups(samples, rows), **size_groups(samples, rows)},
        identities=samples.patient_ids[rows],
        resamples=probed.resamples,
        seed=probed.seed,
    )
    return ErrorRates(case.key.dataset, case.key.preset, case.name, groups)


def _question_faults(
    probed: Probed, case: ProbeCase, pictures: Int64, most: int, folder: PictureFolder
) -> QuestionFaults:
    """List the faults of a question, of which `most` of a kind are shown, and write the images that the list names."""
    tested = probed.tested(case)
    kinds = false_positives, false_negatives = _by_kind(tested)
    shown = np.concatenate([of_kind[:most] for of_kind in kinds])
    related = list(related_images(case, tested, pictures, shown))
    images = _pictured(case, {*tested.rows[shown].tolist(), *(row for item in related for row in item.rows)}, folder)
    maps = _written_maps(probed, case, tested, shown, folder)
    return QuestionFaults(
        dataset=case.key.dataset,
        preset=case.key.preset,
        features=case.name,
        positive=case.task.record.positive,
        negative=case.task.record.negative,
        tested=len(tested.rows),
        false_positives=len(false_positives),
        false_negatives=len(false_negatives),
        most_confident=[
            replace(_fault(case, tested, number, item, images), map=maps.get(number, ""))
            for number, item in zip(shown.tolist(), related, strict=True)
        ],
    )


def _by_kind(tested: Tested) -> tuple[Int64, Int64]:
    """Return which tested images are false positives and which false negatives, the most confident first."""
    order = np.argsort(-np.abs(tested.scores - tested.thresholds), kind="stable")
    called, positive = tested.is_positive[order], (tested.classes == 1)[order]
    return order[called & ~positive], order[~called & positive]


def _pictured(case: ProbeCase, rows: set[int], folder: PictureFolder) -> dict[int, PicturedImage]:
    """Write the images of these rows and return their records."""
    answers = dict(zip(case.rows.tolist(), case.classes[0].tolist(), strict=True))
    listed = sorted(rows)
    images = folder.images(case.task.labeled_set, np.array(listed, np.int64), [answers.get(row) for row in listed])
    return dict(zip(listed, images, strict=True))


def _written_maps(
    probed: Probed, case: ProbeCase, tested: Tested, shown: Int64, folder: PictureFolder
) -> dict[int, str]:
    """Write where each of these tested images holds the evidence for the decision on it; none for some networks."""
    try:
        maps = CaseMaps.of(probed, case)
    except NoMap:
        return {}
    ids, question = case.task.labeled_set.samples.ids[tested.rows[shown]], stable_hash(case.task.record.question)
    written = dict[int, str]()
    for number, image, cells in zip(shown.tolist(), ids.tolist(), maps.of_decisions(tested, shown), strict=True):
        written[number] = f"{image:016x}-{question:016x}-map.jpg"
        folder.write_map(written[number], cells, case.task.labeled_set)
    return written


def _fault(
    case: ProbeCase, tested: Tested, number: int, related: Related, images: Mapping[int, PicturedImage]
) -> Fault:
    row, of_round = int(tested.rows[number]), int(tested.rounds[number])

    def listed(alike: Alike) -> list[RelatedImage]:
        return [
            _related_image(case, tested, of_round, other, images[other], cosine)
            for other, cosine in alike.cosines.items()
        ]

    return Fault(
        image=images[row],
        fold=of_round + 1,
        score=float(tested.scores[number]),
        threshold=float(tested.thresholds[number]),
        shorter_side_px=int(case.task.labeled_set.samples.source_sizes[row].min()) or None,
        nearest=listed(related.fitted),
        same_patient=listed(related.of_patient),
        same_picture=listed(related.of_picture),
        more_of_patient=related.of_patient.left_out,
        more_of_picture=related.of_picture.left_out,
    )


def _related_image(
    case: ProbeCase, tested: Tested, of_round: int, row: int, image: PicturedImage, cosine: float
) -> RelatedImage:
    number = next(iter(np.flatnonzero(tested.rows == row).tolist()), None)
    return RelatedImage(
        image=image,
        part=_part(case, row, of_round),
        score=None if number is None else float(tested.scores[number]),
        threshold=None if number is None else float(tested.thresholds[number]),
        cosine=cosine,
    )


def _part(case: ProbeCase, row: int, of_round: int) -> Part:
    """Return the part of an image in a round; one that does not answer the question is in neither."""
    folds = case.folds[of_round, case.rows == row].tolist() or [UNUSED]
    return "neither" if folds == [UNUSED] else "test" if folds == [-1] else "development"
