"""How far the parts of an official split are told apart."""

from evaluation.fitting.control_cases import ShiftCase
from evaluation.fitting.fit_cases import FittedCases
from evaluation.results.rows import Shift
from evaluation.scoring.probe_results import predict
from evaluation.scoring.scores import score


def shift_result(shift: ShiftCase, fitted: FittedCases, *, resamples: int, seed: int) -> Shift:
    """Score the parts as upstream chose them, and as drawn at random.

    Args:
        shift: the cases
        fitted: their fitted probes
        resamples: bootstrap resamples of the patients
        seed: seed of the resamples
    """
    auc, null = (
        score(predict(case, fitted[case]), resamples=resamples, seed=seed).auc for case in (shift.case, shift.null)
    )
    tested = int(shift.case.classes[0].sum())
    return Shift(
        dataset=shift.whole.key.dataset,
        preset=shift.whole.key.preset,
        features=shift.whole.name,
        group=shift.group,
        development=len(shift.case.rows) - tested,
        test=tested,
        auc=auc,
        null=null,
    )
