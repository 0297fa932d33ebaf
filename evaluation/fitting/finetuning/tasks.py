"""Fine-tunes the last checkpoint of a run on each task: one network for all labels of a task, kept with the run."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np

from evaluation.data.division import UNUSED
from evaluation.data.feature_sources import FeatureSource
from evaluation.data.probe_tasks import DividedTask, ProbeTask
from evaluation.fitting.case_list import last_case
from evaluation.fitting.finetuning.config import FinetuneConfig
from evaluation.fitting.finetuning.images import Inputs, TaskImages
from evaluation.fitting.finetuning.kept import NetworkRecord, keep, read_predictions, read_record
from evaluation.fitting.finetuning.probe_head import probe_head
from evaluation.fitting.finetuning.targets import Targets
from evaluation.fitting.finetuning.training import Finetuned, finetune
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.fitting.threshold import threshold_of
from infra.arrays import Float32, Float64, Int64
from infra.errors import RunFailed, UserError
from infra.log import say
from infra.storage.files import disk_errors, file_name_of, remove_remains
from sharding.images.encoding import encoding_of
from ssl_core.model.encoder import Backbone

_TEST: Final = "test"
_VALIDATION: Final = "validation"
_UNKNOWN: Final = -1
_VERSION: Final = 1  # of how networks are trained; raise it when that changes, so that kept ones are trained again


@dataclass(frozen=True)
class FinetunedLabel:
    """What a fine-tuned network says about one label.

    Attributes:
        test_rows: (t,) positions of the test images among the images of the label's case
        test: (t,) their probabilities of the positive class
        validation_rows: (v,) likewise for the validation images, which had no part in training or in the choice of the
            epoch
        validation: (v,) likewise
        threshold: above it a probability is called positive
    """

    test_rows: Int64
    test: Float64
    validation_rows: Int64
    validation: Float64
    threshold: float


@dataclass(frozen=True)
class Finetuner:
    """Fine-tunes a backbone on each task once; reads what an earlier probe has kept.

    The caller holds a lock on the run's probes.

    Attributes:
        folder: folder of the networks
        inputs: how images become inputs
        config: options
        seed: seed of order and views
    """

    folder: Path
    inputs: Inputs
    config: FinetuneConfig
    seed: int

    def finetune(
        self, tasks: Sequence[DividedTask], cases: Sequence[ProbeCase], source: FeatureSource
    ) -> dict[ProbeCase, FinetunedLabel]:
        """Train one network for each task that has one test part; cross-validation would need one for each part.

        Args:
            tasks: the tasks
            cases: the probe cases of their questions
            source: the last checkpoint

        Returns:
            What the networks say, by the case of the last checkpoint on each question.

        Raises:
            RunFailed: if training diverges or an image is damaged
        """
        remove_remains(self.folder)
        labels: dict[ProbeCase, FinetunedLabel] = {}
        for task, name in zip(tasks, _folder_names(tasks), strict=True):
            of_task = [_last_checkpoint(cases, question) for question in task.questions]
            if len(of_task[0].folds) > 1:
                say(f"{task.key.dataset}, {task.key.preset}: not fine-tuned, because it is cross-validated")
            else:
                labels |= self._finetuned(self.folder / name, task, of_task, source)
        return labels

    def _finetuned(
        self, folder: Path, task: DividedTask, cases: Sequence[ProbeCase], source: FeatureSource
    ) -> dict[ProbeCase, FinetunedLabel]:
        """Read or train the network of a task, whose questions have these cases."""
        rows, images = _images_of(task, cases)
        identity = self._identity(task, cases)
        record = _kept_record(folder, identity)
        if record is None:
            say(f"fine-tuning {source.name} on {task.key.dataset}, {task.key.preset}, as {folder}")
            with disk_errors(folder):
                self.folder.mkdir(parents=True, exist_ok=True)  # refused now rather than after the training
            record = self._trained(folder, identity, task, source, images, cases[0].matrix.values[rows])
        predictions = read_predictions(folder)
        parts = {name: (rows[of_part], predictions[name]) for name, of_part in _parts(images).items()}
        return {case: _label(case, number, parts, record.thresholds[number]) for number, case in enumerate(cases)}

    def _trained(
        self,
        folder: Path,
        identity: str,
        task: DividedTask,
        source: FeatureSource,
        images: TaskImages,
        features: Float32,
    ) -> NetworkRecord:
        """Train and keep the network of a task, whose images have these frozen features (n, D)."""
        head = probe_head(features, images, task.questions[0].preset) if self.config.probe_first else None
        backbone = source.backbone()
        assert isinstance(backbone, Backbone), "a checkpoint holds a backbone"
        trained = finetune(backbone, images, self.inputs, self.config, seed=self.seed, head=head)
        chosen = f"epoch {trained.epoch} of {trained.trained_epochs}"
        say(f"{folder}: {chosen} is the best on fold 0, with a mean AUC of {trained.epoch_auc:.3f}")
        record = self._record(identity, task, source, backbone.name, images, trained)
        keep(folder, record, trained.network, {_TEST: trained.test, _VALIDATION: trained.validation})
        return record

    def _identity(self, task: DividedTask, cases: Sequence[ProbeCase]) -> str:
        """Hash everything that a network depends on; the identity of a round covers weights, images and their input."""
        rounds = [one.identity for case in cases for one in case.rounds()]
        text = f"{_VERSION} {rounds} {task.task.kind} {self.inputs.spec} {self.config} {self.seed}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _record(
        self,
        identity: str,
        task: DividedTask,
        source: FeatureSource,
        backbone: str,
        images: TaskImages,
        trained: Finetuned,
    ) -> NetworkRecord:
        questions = [question.cohort.question for question in task.questions]
        preset, manifest = task.questions[0].preset, task.questions[0].labeled_set.manifest
        answers = images.targets.of(images.validation).answers
        return NetworkRecord(
            identity=identity,
            sternum=version("sternum"),
            dataset=task.key.dataset,
            preset=task.key.preset,
            task=task.task.name,
            kind=task.task.kind,
            labels=[question.positive for question in questions],
            negatives=[question.record.negative for question in task.questions],
            others=trained.network.head.out_features > len(questions),
            thresholds=[
                threshold_of(preset, of_label[of_label >= 0], probabilities[of_label >= 0])
                for of_label, probabilities in zip(answers, trained.validation, strict=True)
            ],
            backbone=backbone,
            features=source.name,
            step=source.step,
            input=self.inputs.preprocessing,
            epoch=trained.epoch,
            epoch_auc=trained.epoch_auc,
            trained_epochs=trained.trained_epochs,
            set=manifest.name,
            set_identity=manifest.identity,
            encoding=encoding_of(manifest.options),
            images=len(images.training),
            options=asdict(self.config),
            seed=self.seed,
        )


def _folder_names(tasks: Sequence[DividedTask]) -> list[str]:
    """Return the name of each task's folder; of equal ones, the later have a number."""
    names: list[str] = []
    for task in tasks:
        name = file_name_of(f"{task.key.dataset}-{task.key.preset}")
        count = sum(other.partition("~")[0] == name for other in names)
        names.append(f"{name}~{count + 1}" if count else name)
    return names


def _last_checkpoint(cases: Sequence[ProbeCase], question: ProbeTask) -> ProbeCase:
    case = last_case(cases, next(case for case in cases if case.task is question))
    assert case is not None, "the source is a checkpoint"
    return case


def _images_of(task: DividedTask, cases: Sequence[ProbeCase]) -> tuple[Int64, TaskImages]:
    """Return the samples (n,) of a task, and their images with the answers to all questions."""
    labeled_set = cases[0].task.labeled_set
    used = [case.folds[0] != UNUSED for case in cases]
    rows = np.unique(np.concatenate([case.rows[inside] for case, inside in zip(cases, used, strict=True)]))
    answers, fold = np.full((len(cases), len(rows)), _UNKNOWN), np.full(len(rows), UNUSED)
    for number, (case, inside) in enumerate(zip(cases, used, strict=True)):
        positions = np.searchsorted(rows, case.rows[inside])
        answers[number, positions], fold[positions] = case.classes[0][inside], case.folds[0][inside]
    targets = Targets(answers, exclusive=task.task.kind == "multiclass")
    return rows, TaskImages(labeled_set.shards, labeled_set.samples.ids[rows], targets, fold)


def _parts(images: TaskImages) -> dict[str, Int64]:
    """Return the rows of each part that is scored."""
    return {_TEST: images.test, _VALIDATION: images.validation}


def _label(
    case: ProbeCase, number: int, parts: Mapping[str, tuple[Int64, Float64]], threshold: float
) -> FinetunedLabel:
    """Return what a network says about the label with this number, for the images that answer its question."""
    found = {}
    for name, (samples, probabilities) in parts.items():
        positions = np.flatnonzero(np.isin(case.rows, samples) & (case.folds[0] != UNUSED))
        found[name] = positions, probabilities[number, np.searchsorted(samples, case.rows[positions])]
    return FinetunedLabel(*found[_TEST], *found[_VALIDATION], threshold)


def _kept_record(folder: Path, identity: str) -> NetworkRecord | None:
    """Return the record of the kept network with this identity; None if there is none, or if it is damaged."""
    try:
        record = read_record(folder)
    except (UserError, RunFailed) as error:
        if folder.exists():
            say(f"warning: {error}, which happens now")
        return None
    if record.identity != identity:
        say(f"{folder} holds a network of other weights, images or options; a new one replaces it")
        return None
    return record
