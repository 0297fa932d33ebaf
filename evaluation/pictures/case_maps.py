"""Maps of the evidence for a probe's decisions, each through the classifier that did not see the image's patient."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from evaluation.data.extractor import Extractor
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.fitting.search import FinalFit, FittedProbe
from evaluation.pictures.explainer import Explainer, direction_of, explainer_of
from evaluation.pictures.probed import Probed, Tested
from evaluation.results.classifier import Classifier
from infra.arrays import Bool, Float32, Int64


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
        """Return the maps of a case whose features are those of a network; raises NoMap if that has none."""
        source = probed.source_of(case)
        extractor = probed.extractor.fitting(source)
        directions = np.stack([direction_of([each]) for each in _classifiers(case, probed.fitted[case])])
        return cls(case, _explainer(source.backbone(), extractor), directions, extractor)

    def with_backbone(self, backbone: nn.Module) -> "CaseMaps":
        """Return the maps through another network of the same architecture."""
        return replace(self, explainer=_explainer(backbone, self.extractor))

    def of_decisions(self, tested: Tested, chosen: Int64) -> Float32:
        """Return for each chosen test image (m,) the evidence (m, h, w) for the decision on it.

        That is the evidence for the positive class if the image was called positive, else the evidence against it.
        """
        return self.of_classes(tested, chosen, tested.is_positive[chosen])

    def of_classes(self, tested: Tested, chosen: Int64, positive: Bool) -> Float32:
        """Return for each chosen test image (m,) the evidence (m, h, w) for a class, positive (m,) or not."""
        if not len(chosen):
            return np.zeros((0, *self.explainer.method.cells), np.float32)
        sides = np.where(positive, 1, -1).astype(np.float32)
        directions = self.directions[tested.rounds[chosen]] * sides[:, None]
        order = np.argsort(tested.rows[chosen])  # images are read in packed order
        maps = np.concatenate(list(self._in_order(tested.rows[chosen][order], directions[order])))
        return maps[np.argsort(order)]

    def _in_order(self, rows: Int64, directions: Float32) -> Iterator[Float32]:
        extractor, shards = self.extractor, self.case.task.labeled_set.shards
        with closing(extractor.batches(shards, extractor.preprocessing.views, numbers=rows)) as batches:
            for batch in batches:
                count = len(batch.rows)
                yield self.explainer.maps(batch.views, directions[:count])
                directions = directions[count:]


def _explainer(backbone: nn.Module, extractor: Extractor) -> Explainer:
    return explainer_of(backbone, extractor.preprocessing.size_px, extractor.device)


def _classifiers(case: ProbeCase, probes: Sequence[FittedProbe]) -> Iterator[Classifier]:
    """Yield the classifier of each round; one that was not kept is fitted again."""
    for item, probe in zip(case.rounds(), probes, strict=True):
        problem = replace(item.problem, keeps_classifier=True, tests_every_c=False)
        classifier = probe.classifier or FinalFit(item.name, probe.c)(case.matrix.values, problem).classifier
        assert classifier is not None, "the problem asks for it"
        yield classifier
