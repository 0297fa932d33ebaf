"""Kept probes come back to the last bit, and whatever is wrong with their files is one line with the way out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.results.classifier import Classifier
from evaluation.results.kept_probes import (
    LIST,
    NUMBERS,
    KeptBackbone,
    KeptProbe,
    KeptProbes,
    ProbeNumbers,
    write_kept_probes,
)
from evaluation.results.results import write_results
from infra.errors import UserError
from sharding.images.encoding import Encoding
from tests.evaluation.results.test_damaged_records import DAMAGES
from tests.support.probe_results import made_results

BACKBONE = KeptBackbone(
    "resnet18", "checkpoints/step-5/model.safetensors", "0" * 64, 96, [0.5], [0.25], "pad", False, "Torchvision"
)
PROBE = KeptProbe(
    "cell", "rigorous", "epoch 5", "checkpoint", 5, 5.0, "cell", "binary", "", "PNEUMONIA", "NORMAL",
    BACKBONE, Encoding(320), "cell", "1" * 64, "features/x.safetensors",
    c=[0.1, 1.0], threshold=[0.3, 0.4], calibration=[(1.5, 0.1), (0.5, -0.1)], images=7, patients=3, positives=2,
)  # fmt: skip
random = np.random.default_rng(0)


def numbers(images: int = 7) -> ProbeNumbers:
    classifiers = [
        Classifier(random.normal(size=4), random.random(4) + 0.1, random.normal(size=4), random.normal()) for _ in "12"
    ]
    return ProbeNumbers(classifiers, np.arange(images), np.arange(images) // 3)


def test_probes_are_read_back_to_the_last_bit(tmp_path: Path) -> None:
    other = replace(PROBE, dataset="hospital", calibration=[], images=9)
    written = [(PROBE, numbers()), (replace(PROBE, features="epoch 6"), numbers()), (other, numbers(9))]
    write_kept_probes(tmp_path, written)
    kept = KeptProbes(tmp_path)
    assert kept.probes == [probe for probe, _ in written]
    for probe, expected in written:
        found = kept.numbers(probe)
        assert (found.rows.tolist(), found.patients.tolist()) == (expected.rows.tolist(), expected.patients.tolist())
        for ours, theirs in zip(found.classifiers, expected.classifiers, strict=True):
            for name, value in vars(theirs).items():
                assert np.asarray(getattr(ours, name)).tobytes() == np.asarray(value).tobytes()


def test_run_without_kept_probes_is_one_line_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"keeps no fitted probes; probe it again .*: sternum probe {tmp_path} --data"):
        KeptProbes(tmp_path)
    write_results(tmp_path, made_results())
    with pytest.raises(UserError, match=r"sternum probe runs/made --data\.shards="):
        KeptProbes(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [LIST, NUMBERS])
def test_damaged_file_is_one_line(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    write_kept_probes(tmp_path, [(PROBE, numbers())])
    path = tmp_path / "probes" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"^{path} cannot be read[^\n]+; probe it again"):
        KeptProbes(tmp_path).numbers(PROBE)


@pytest.mark.parametrize("odd", [numbers(6), ProbeNumbers(numbers().classifiers[:1], np.arange(7), np.arange(7) // 3)])
def test_numbers_of_another_probe_are_refused(tmp_path: Path, odd: ProbeNumbers) -> None:
    write_kept_probes(tmp_path, [(PROBE, odd)])
    with pytest.raises(UserError, match="its numbers do not fit the list"):
        KeptProbes(tmp_path).numbers(PROBE)
