import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from torch import nn

from evaluation.data.extractor import maker_of_inputs
from evaluation.data.features import Preprocessing, RawPixels, extract, fingerprint, load_stored, require_finite, store
from infra.errors import UserError
from ssl_core.views import ViewTask

INPUT = Preprocessing(32, mean=0.5, std=0.25, executor="TorchvisionExecutor", fit="pad", mirrored=False)


def test_features_are_those_of_evaluation_mode_whatever_the_batches() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    images = torch.randn(10, 1, 8, 8)
    whole = extract(backbone.train(), [[images]], torch.device("cpu"))
    parts = extract(backbone.train(), [[part] for part in torch.split(images, 3)], torch.device("cpu"))
    assert whole.shape == (10, 3)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    mirrored = extract(backbone, [[images.flip(3)]], torch.device("cpu"))
    averaged = extract(backbone, [[images, images.flip(3)]], torch.device("cpu"))
    np.testing.assert_allclose(averaged, (whole + mirrored) / 2, atol=1e-6)
    assert np.abs(mirrored - whole).max() > 1e-3


def test_raw_pixels_are_means_of_squares_of_the_image() -> None:
    image = torch.arange(64 * 64, dtype=torch.float32).reshape(1, 1, 64, 64)
    pixels = RawPixels()(image).reshape(32, 32)
    assert pixels[0, 0] == image[0, 0, :2, :2].mean()
    assert pixels[31, 31] == image[0, 0, 62:, 62:].mean()


def test_fingerprint_changes_with_all_that_features_depend_on_and_with_nothing_else() -> None:
    torch.manual_seed(0)
    first = nn.Linear(2, 2)
    copied, other = nn.Linear(2, 2), nn.Linear(2, 2)
    copied.load_state_dict(first.state_dict())
    same = fingerprint(first, "data", INPUT)
    assert fingerprint(copied, "data", INPUT) == same
    changed = [
        fingerprint(other, "data", INPUT),
        fingerprint(nn.Sequential(first), "data", INPUT),
        fingerprint(first, "other data", INPUT),
        fingerprint(first, "data", replace(INPUT, size_px=64)),
        fingerprint(first, "data", replace(INPUT, mean=0.4)),
        fingerprint(first, "data", replace(INPUT, executor="DaliExecutor")),
        fingerprint(first, "data", replace(INPUT, fit="square")),
        fingerprint(first, "data", replace(INPUT, mirrored=True)),
        fingerprint(first, "data", replace(INPUT, antialias=True)),
    ]
    assert len({same, *changed}) == len(changed) + 1


def test_stored_features_come_back_for_the_same_samples_only(tmp_path: Path) -> None:
    values, ids = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32), np.arange(4, dtype=np.uint64)
    path = tmp_path / "x.safetensors"
    assert load_stored(path, ids, dimensions=2) is None
    store(path, values, ids)
    stored = load_stored(path, ids, dimensions=2)
    assert stored is not None
    assert np.array_equal(stored, values)
    assert load_stored(path, ids[::-1], dimensions=2) is None


def test_damaged_stored_features_are_named_and_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nothing of the kind")
    assert load_stored(path, np.arange(4, dtype=np.uint64)) is None
    assert "x.safetensors cannot be read" in capsys.readouterr().err


def test_features_that_are_not_finite_are_refused_by_name() -> None:
    values = np.zeros((5, 2), np.float32)
    require_finite(values, "epoch 3 on cell")
    values[2] = np.inf
    with pytest.raises(UserError, match="epoch 3 on cell are not finite for 1 of 5 images"):
        require_finite(values, "epoch 3 on cell")


@pytest.mark.parametrize("hostile", ["pipe", "endless", "other names", "other shape", "other type"])
def test_stored_features_that_somebody_else_put_there_are_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hostile: str
) -> None:
    path, ids = tmp_path / "x.safetensors", np.arange(4, dtype=np.uint64)
    if hostile == "pipe":
        os.mkfifo(path)
    elif hostile == "endless":
        path.symlink_to("/dev/zero")
    elif hostile == "other names":
        path.write_bytes(save({"sample": ids}))
    else:
        shape = (3, 2) if hostile == "other shape" else (4, 2)
        store(path, np.zeros(shape, np.float64 if hostile == "other type" else np.float32), ids)
    assert load_stored(path, ids, dimensions=2) is None
    assert f"warning: {path} cannot be read (" in capsys.readouterr().err
    store(path, np.zeros((4, 2), np.float32), ids)
    assert load_stored(path, ids, dimensions=2) is not None


def test_features_made_on_a_gpu_have_files_of_their_own() -> None:
    """NVJPEG and cuDNN round otherwise than the CPU's libraries, so a table must not mix both."""
    task = ViewTask(64, 1, 0.5, 0.25, 1)
    on_gpu = replace(task, device=torch.device("cuda", 3))
    assert maker_of_inputs("torchvision", task) == "TorchvisionExecutor"  # as stored before there were GPUs
    made = {maker_of_inputs("torchvision", one) for one in (task, on_gpu, replace(on_gpu, device=torch.device("cuda")))}
    assert made == {"TorchvisionExecutor", "TorchvisionExecutor on cuda"}
