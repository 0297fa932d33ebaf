"""Fitted probes kept with a run as plain numbers, for images that come later.

`RUN/probes/probes.json` describes each probe, and `RUN/probes/classifiers.safetensors` holds the numbers of all. The
second file is written first, and the first holds its checksum, so the two always belong together.
"""

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from evaluation.results.classifier import Classifier
from evaluation.results.datasets import TaskKey
from evaluation.results.results import read_results
from infra.arrays import Float64, Int64
from infra.errors import UserError, require
from infra.storage.files import read_regular, write_atomic
from infra.storage.json_files import BadJson, encode_json, read_json
from sharding.images.encoding import Encoding

FOLDER: Final = "probes"
LIST: Final = "probes.json"
NUMBERS: Final = "classifiers.safetensors"
VERSION: Final = 1


@dataclass(frozen=True)
class KeptBackbone:
    """The network whose features a probe reads, and its input.

    Attributes:
        network: name of the architecture
        weights: file with the weights; relative to the run folder if the run trained them
        sha256: hash of that file
        size_px: width and height of the input
        mean: of each channel, on the scale 0 to 1
        std: likewise
        fit: how an image that is not square becomes a square
        mirrored: whether features are the means of those of the image and of its mirror image
        executor: what decoded the images, and the device if that was a GPU
        antialias: whether images are smoothed before they are reduced
    """

    network: str
    weights: str
    sha256: str
    size_px: int
    mean: list[float]
    std: list[float]
    fit: Literal["pad", "squash", "square"]
    mirrored: bool
    executor: str
    antialias: bool = False


@dataclass(frozen=True)
class KeptProbe:
    """What is said of a probe beside its numbers.

    A cross-validated task has a classifier for each test part, all with the same question. Lists have one item for each
    classifier.

    Attributes:
        dataset: label of the question in the tables
        preset: name of the preset
        features: name of the features in the tables
        kind: checkpoint, or compared weights
        step: step of a checkpoint
        epoch: epoch of a checkpoint
        task: name of the task
        task_kind: binary, multiclass or multilabel
        question: the positive label of one of several questions; "" for a binary task
        positive: name of the positive class
        negative: name of the negative class
        backbone: the network and its input
        encoding: how the images of the set were packed
        set: name of the set
        set_identity: hash of the packed images
        features_file: the features of the set, relative to the run folder
        c: the chosen C
        threshold: a probability above it is called positive
        calibration: slope and intercept of Platt scaling on the logit scale; empty if the preset does not calibrate
        images: images that some classifier was fitted to
        patients: patients of these images; images that share a picture count as one patient's in `rigorous`
        positives: positive images among these
    """

    dataset: str
    preset: str
    features: str
    kind: str
    step: int | None
    epoch: float | None
    task: str
    task_kind: str
    question: str
    positive: str
    negative: str
    backbone: KeptBackbone
    encoding: Encoding
    set: str
    set_identity: str
    features_file: str
    c: list[float]
    threshold: list[float]
    calibration: list[tuple[float, float]]
    images: int
    patients: int
    positives: int

    @property
    def key(self) -> TaskKey:
        """Key of the rows of this question."""
        return TaskKey(self.dataset, self.preset)


@dataclass(frozen=True, eq=False)
class ProbeNumbers:
    """The numbers of a probe.

    Attributes:
        classifiers: one for each test part
        rows: (n,) rows of the images that some classifier was fitted to, in the stored features of the set
        patients: (n,) codes of their patients
    """

    classifiers: Sequence[Classifier]
    rows: Int64
    patients: Int64


@dataclass(frozen=True)
class _Listed:
    """A probe in the list, and the number under which its development images are stored."""

    probe: KeptProbe
    development: int


@dataclass(frozen=True)
class _Version:
    version: int


@dataclass(frozen=True)
class _List(_Version):
    numbers_sha256: str
    probes: list[_Listed] = field(default_factory=list)


def write_kept_probes(run: Path, probes: Iterable[tuple[KeptProbe, ProbeNumbers]]) -> None:
    """Replace the kept probes of a run.

    Raises:
        UserError: if the disk is full or not writable
    """
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    listed = []
    parts: dict[bytes, int] = {}  # the features of a task share its images
    for number, (probe, numbers) in enumerate(probes):
        part = parts.setdefault(numbers.rows.tobytes() + numbers.patients.tobytes(), len(parts))
        tensors |= {f"development.{part}.rows": numbers.rows, f"development.{part}.patients": numbers.patients}
        classifiers = numbers.classifiers
        tensors |= {
            f"{number}.mean": np.stack([each.mean for each in classifiers]),
            f"{number}.scale": np.stack([each.scale for each in classifiers]),
            f"{number}.coefficients": np.stack([each.coefficients for each in classifiers]),
            f"{number}.intercept": np.array([each.intercept for each in classifiers]),
        }
        listed.append(_Listed(probe, part))
    content, folder = safetensors.numpy.save(tensors), run / FOLDER
    write_atomic(folder / NUMBERS, content)
    write_atomic(folder / LIST, encode_json(_List(VERSION, hashlib.sha256(content).hexdigest(), listed)))


class KeptProbes:
    """The kept probes of a run.

    Attributes:
        run: the run folder
        probes: what is said of each probe
    """

    def __init__(self, run: Path) -> None:
        """Read the list of the probes.

        Raises:
            UserError: if the run keeps no probes, or the list cannot be read
        """
        self.run, path = run, run / FOLDER / LIST
        try:
            version = read_json(path, _Version).version
            require(
                version == VERSION, f"{path} has version {version}, this Sternum reads {VERSION}; {_probe_again(run)}"
            )
            self._list = read_json(path, _List)
        except FileNotFoundError:
            raise UserError(f"{run} keeps no fitted probes; {_probe_again(run)}") from None
        except BadJson as error:
            raise UserError(f"{path} cannot be read: {error}; {_probe_again(run)}") from error
        self.probes = [listed.probe for listed in self._list.probes]

    def numbers(self, probe: KeptProbe) -> ProbeNumbers:
        """Read the numbers of one of these probes.

        Raises:
            UserError: if they are missing, damaged, or not those of the list
        """
        path, number = self.run / FOLDER / NUMBERS, self.probes.index(probe)
        try:
            content = read_regular(path)
            digest = hashlib.sha256(content).hexdigest()
            require(digest == self._list.numbers_sha256, "it is not the file that the list belongs to")
            tensors = safetensors.numpy.load(content)
            numbers = [tensors[f"{number}.{name}"] for name in ("mean", "scale", "coefficients", "intercept")]
            development = f"development.{self._list.probes[number].development}"
            rows, patients = tensors[f"{development}.rows"], tensors[f"{development}.patients"]
            require(_are_numbers_of(probe, numbers, rows, patients), "its numbers do not fit the list")
        except (OSError, UserError, SafetensorError, KeyError) as error:
            raise UserError(f"{path} cannot be read ({error}); {_probe_again(self.run)}") from error
        classifiers = [
            Classifier(mean, scale, coefficients, float(intercept))
            for mean, scale, coefficients, intercept in zip(*numbers, strict=True)
        ]
        return ProbeNumbers(classifiers, rows, patients)


def _are_numbers_of(probe: KeptProbe, numbers: list[Float64], rows: Int64, patients: Int64) -> bool:
    """Return whether numbers have the types and shapes of this probe's, and are finite."""
    *matrices, intercept = numbers
    rounds = len(probe.threshold)
    return (
        all(each.dtype == np.float64 and bool(np.isfinite(each).all()) for each in numbers)
        and all(each.ndim == 2 and each.shape == matrices[0].shape for each in matrices)
        and (len(matrices[0]), intercept.shape, len(probe.calibration) or rounds) == (rounds, (rounds,), rounds)
        and bool((matrices[1] > 0).all())
        and all(each.dtype == np.int64 and each.shape == (probe.images,) for each in (rows, patients))
    )


def _probe_again(run: Path) -> str:
    """Return the way out, with the command that probed the run if that is known."""
    command = f"sternum probe {run} --data.shards=[SHARDS]"
    with suppress(UserError):
        results = read_results(run)
        command = results.command if results and results.command else command
    return f"probe it again with this version: {command}"
