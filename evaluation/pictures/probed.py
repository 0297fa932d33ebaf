"""A finished probe, as its pictures need it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import nn

from evaluation.data.extractor import Extractor, Features
from evaluation.data.feature_sources import FeatureSource
from evaluation.fitting.case_list import last_case
from evaluation.fitting.fit_cases import FittedCases
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.fitting.search import FittedProbe
from evaluation.scoring.probe_results import thresholds
from infra.arrays import Bool, Float64, Int64
from infra.rng import uniform


class Tested(NamedTuple):
    """What a probe says of the m test images of a question, each by a classifier that did not see its patient.

    Attributes:
        positions: (m,) of the images in the case, ascending
        rows: (m,) of the images in their set
        rounds: (m,) number of the classifier, from 0: the first that the image tests
        classes: (m,) 1 positive, 0 negative
        patients: (m,) codes; the images of a patient are resampled together
        scores: (m,) probability of the positive class
        thresholds: (m,) a score above it is called positive
    """

    positions: Int64
    rows: Int64
    rounds: Int64
    classes: Int64
    patients: Int64
    scores: Float64
    thresholds: Float64

    @property
    def is_positive(self) -> Bool:
        """(m,) the decisions."""
        return self.scores > self.thresholds


@dataclass(frozen=True)
class Probed:
    """A finished probe.

    Attributes:
        features: features of all sources; what is judged comes last
        cases: the probe cases, in the order of the rows
        fitted: the fitted probes of each case
        extractor: reads images and extracts features as the probe did
        untrained: builds the judged network with the random weights of a seed
        resamples: bootstrap resamples of the patients
        seed: determines every draw
    """

    features: Features
    cases: Sequence[ProbeCase]
    fitted: FittedCases
    extractor: Extractor
    untrained: Callable[[int], nn.Module]
    resamples: int
    seed: int

    @property
    def judged(self) -> FeatureSource:
        """The last checkpoint, or without a run the first backbone."""
        return list(self.features)[-1]

    @property
    def primary(self) -> ProbeCase:
        """The judged features on the first question, by `rigorous` if it was probed so: what pictures are about."""
        strict = [case for case in self.cases if case.preset.chooses_threshold]
        case = last_case(self.cases, (strict or self.cases)[0])
        assert case is not None, "every question is probed with the judged features"
        return case

    def source_of(self, case: ProbeCase) -> FeatureSource:
        """Return the network whose features a case probes."""
        return next(source for source in self.features if (source.kind, source.name) == (case.kind, case.name))

    def drawn(self, case: ProbeCase, tested: Tested, among: Int64, count: int, stream: str) -> Int64:
        """Return up to `count` of some test images, by number, drawn by their identities; a larger draw begins alike.

        Args:
            case: the case
            tested: its test images
            among: (m,) numbers of the images to draw from
            count: how many
            stream: the purpose, so that two draws share nothing
        """
        ids = case.task.labeled_set.samples.ids[tested.rows[among]]
        return among[np.argsort(uniform(self.seed, f"pictures-{stream}", ids, 0, 1)[:, 0])[:count]]

    def tested(self, case: ProbeCase) -> Tested:
        """Return what the probes of a case say of its test images."""
        rounds, positions = np.nonzero(case.folds == -1)
        probes: Sequence[FittedProbe] = self.fitted[case]
        scores = np.concatenate([probe.probabilities for probe in probes])
        positions, first = np.unique(positions, return_index=True)
        rounds = rounds[first]
        return Tested(
            positions=positions,
            rows=case.rows[positions],
            rounds=rounds,
            classes=case.classes[rounds, positions],
            patients=case.patients[positions],
            scores=scores[first],
            thresholds=np.array(thresholds(case, probes))[rounds],
        )
