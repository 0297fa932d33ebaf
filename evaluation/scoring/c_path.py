"""What each value of C reached in validation and on the test part."""

from collections.abc import Sequence
from statistics import fmean

from evaluation.fitting.search import FittedProbe
from evaluation.results.rows import TriedC


def c_path(probes: Sequence[FittedProbe]) -> list[TriedC]:
    """Return the values of C of a case from its fitted probes, one for each round."""
    return [
        TriedC(
            c=c,
            validation_auc=fmean(probe.aucs[c] for probe in probes),
            standard_error=fmean(probe.errors[c] for probe in probes),
            test_auc=fmean(probe.test_aucs[c] for probe in probes) if probes[0].test_aucs else None,
        )
        for c in sorted(probes[0].aucs)
    ]
