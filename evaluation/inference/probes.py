"""A kept probe of a run, ready to score new images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from evaluation.data.kept_backbones import open_kept
from evaluation.inference.embedder import Embedder, build_embedder
from evaluation.inference.neighbors import Neighbors
from evaluation.inference.probe_choice import choose, split_words
from evaluation.results.classifier import recalibrate
from evaluation.results.kept_probes import KeptProbe, KeptProbes, ProbeNumbers
from evaluation.results.presets import PresetName
from infra.arrays import Bool, Float32, Float64
from infra.errors import UserError, require
from infra.log import say
from infra.storage.files import read_regular

_UNLIKE: Final = 0.99  # of the training images are nearer to their nearest than an image that is called unlike them
_SAME: Final = 1e-6  # distance of one picture to itself, but for rounding


class Answer(NamedTuple):
    """What a probe says of m images to one question.

    Attributes:
        probe: the probe
        of_classifiers: (m, rounds) probability of the positive class by each classifier
        score: (m,) their mean
        threshold: a score above it is called positive; the mean of the classifiers' thresholds
        is_positive: (m,) the decision; of several classes, which one has the highest score
        probability: (m,) mean of the recalibrated probabilities; None if the preset does not calibrate
    """

    probe: KeptProbe
    of_classifiers: Float64
    score: Float64
    threshold: float
    is_positive: Bool
    probability: Float64 | None


class Likeness(NamedTuple):
    """How like the training images m images are.

    Attributes:
        distance: (m,) to the nearest training image
        quantile: (m,) share of the training images that are nearer to their own nearest; NaN if unknown
        notes: (m,) a sentence about an image that needs one, else ""
    """

    distance: Float64
    quantile: Float64
    notes: list[str]


@dataclass(frozen=True, eq=False)
class OpenedProbe:
    """The questions of a task with the backbone whose features they read.

    Attributes:
        run: the run folder
        questions: each probe with its numbers
        embedder: the backbone
        neighbors: the images that the probes were fitted to; None if their features are gone
    """

    run: Path
    questions: Sequence[tuple[KeptProbe, ProbeNumbers]]
    embedder: Embedder
    neighbors: Neighbors | None

    @property
    def first(self) -> KeptProbe:
        """The first question; all have one backbone and one set."""
        return self.questions[0][0]

    def answers(self, features: Float32) -> list[Answer]:
        """Return the answer to each question for features (m, D)."""
        size = len(self.questions[0][1].classifiers[0].coefficients)
        require(
            features.shape[1] == size,
            f"the features have {features.shape[1]} numbers, but the probe of {self.first.dataset} in {self.run} was "
            f"fitted to {size}; take those of its own backbone",
        )
        answers = [_answer(probe, numbers, features) for probe, numbers in self.questions]
        if self.first.task_kind != "multiclass" or len(answers) == 1:
            return answers
        highest = np.argmax([answer.score for answer in answers], axis=0)
        return [answer._replace(is_positive=highest == number) for number, answer in enumerate(answers)]

    def likeness(self, features: Float32) -> Likeness | None:
        """Compare images, by their features (m, D), with the training images; None without these."""
        if self.neighbors is None:
            return None
        distance = self.neighbors.distances(features)
        quantile = self.neighbors.quantiles(distance)
        return Likeness(distance, quantile, list(map(_note, distance.tolist(), quantile.tolist())))


def open_probe(text: str, what: str, *, preset: PresetName | None = None, features: str | None = None) -> OpenedProbe:
    """Open a kept probe.

    Args:
        text: RUN:TASK, where TASK is a name as the tables of the run show it
        what: the option, for messages
        preset: name of the preset; by default rigorous, if the run was probed by it
        features: name of a row of the tables; by default the last checkpoint

    Raises:
        UserError: if there is no such probe, or its backbone is not the one that was probed
        RunFailed: if the checkpoint is damaged
    """
    run, task = split_words(text, what)
    kept = KeptProbes(run)
    chosen = choose(kept.probes, task, f"{what}={text}", preset, features)
    questions = [(probe, kept.numbers(probe)) for probe in chosen]
    first = chosen[0]
    backbone, preprocessing = open_kept(run, first)
    is_torchvision = first.backbone.executor.startswith("Torchvision")
    embedder = build_embedder(backbone, preprocessing, view_executor="torchvision" if is_torchvision else "auto")
    if embedder.preprocessing.executor != first.backbone.executor:
        say(
            f"warning: the probe was fitted to features of {first.backbone.executor}, and these images go through "
            f"{embedder.preprocessing.executor}; scores may differ in the third digit"
        )
    return OpenedProbe(run, questions, embedder, _neighbors(run, questions))


def _neighbors(run: Path, questions: Sequence[tuple[KeptProbe, ProbeNumbers]]) -> Neighbors | None:
    """Read the features of the images that any of the classifiers was fitted to."""
    path = run / questions[0][0].features_file
    rows, first = np.unique(np.concatenate([numbers.rows for _, numbers in questions]), return_index=True)
    patients = np.concatenate([numbers.patients for _, numbers in questions])[first]
    try:
        values = safetensors.numpy.load(read_regular(path))["features"]
        fits = values.dtype == np.float32 and values.ndim == 2 and len(values) > rows[-1]
        require(fits, "its features have another type or shape")
    except (OSError, UserError, SafetensorError, KeyError) as error:
        say(
            f"warning: {path} cannot be read ({error}), so nothing is said of how like the training images new ones "
            "are; probe the run again"
        )
        return None
    return Neighbors(values[rows], patients)


def _answer(probe: KeptProbe, numbers: ProbeNumbers, features: Float32) -> Answer:
    of_classifiers = np.stack([each.probabilities(features) for each in numbers.classifiers], axis=1)
    score, threshold = of_classifiers.mean(axis=1), float(np.mean(probe.threshold))
    probability = None
    if probe.calibration:
        columns = zip(of_classifiers.T, probe.calibration, strict=True)
        probability = np.mean([recalibrate(column, *platt) for column, platt in columns], axis=0)
    return Answer(probe, of_classifiers, score, threshold, score > threshold, probability)


def _note(distance: float, quantile: float) -> str:
    if distance < _SAME and quantile == 0:
        return "has the features of a training image, so its score says nothing about new images"
    if quantile > _UNLIKE:
        return f"unlike the training images: {100 * quantile:.1f} % of them are nearer to their nearest neighbor"
    return ""
