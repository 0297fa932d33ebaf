import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import on_ranks

from infra.errors import RunFailed, UserError
from ssl_core.checkpoint import (
    CheckpointState,
    find_checkpoints,
    load_backbone,
    load_state,
    newest_whole_checkpoint,
    save_checkpoint,
)
from ssl_core.model import Encoder, ModelConfig, build_encoder

MODEL = ModelConfig(backbone="resnet18", projection_width=16, projection_size=8)


def state(step: int) -> CheckpointState:
    return CheckpointState(step, step / 10, "resnet18", "data", 0.5, 0.25, 1, "0.1.0", torch.__version__)


def save(run: Path, step: int, encoder: Encoder | None = None) -> None:
    encoder = encoder or build_encoder(MODEL, step)
    save_checkpoint(run, state(step), encoder.state_dict(), {"a/exp_avg": torch.arange(6.0).view(2, 3)})


def test_what_is_saved_is_loaded_to_the_bit(tmp_path: Path) -> None:
    encoder = build_encoder(MODEL, 1).to(memory_format=torch.channels_last)
    save(tmp_path, 10, encoder)
    (checkpoint,) = find_checkpoints(tmp_path)
    assert checkpoint.state == state(10)
    model, optimizer = load_state(checkpoint)
    assert all(torch.equal(value, model[name]) for name, value in encoder.state_dict().items())
    assert torch.equal(optimizer["a/exp_avg"], torch.arange(6.0).view(2, 3))
    backbone = load_backbone(checkpoint)
    assert all(torch.equal(value, backbone.state_dict()[name]) for name, value in encoder.backbone.state_dict().items())


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, name: str, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    file = tmp_path / "checkpoints" / "step-20" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes(content if harm == "flip" else content[:-1])
    found = newest_whole_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 10
    assert "step-20 is damaged" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_not_probed(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (checkpoint,) = find_checkpoints(tmp_path)
    file = checkpoint.path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    with pytest.raises(RunFailed, match=r"step-10 is damaged: model\.safetensors is not what was written"):
        load_backbone(checkpoint)


def test_a_save_that_is_cut_off_leaves_no_checkpoint(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys, torch; from pathlib import Path\n"
        "from ssl_core.checkpoint import CheckpointState, save_checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"  # the kernel kills the process in the middle of the write
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "state = CheckpointState(5, 0.5, 'resnet18', 'data', 0.5, 0.25, 1, '0', '0')\n"
        "save_checkpoint(Path(sys.argv[1]), state, {'w': torch.zeros(4000)}, {})\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, check=False)
    assert done.returncode != 0
    assert find_checkpoints(tmp_path) == []
    assert newest_whole_checkpoint(tmp_path) is None


def test_no_space_left_is_one_line_and_keeps_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 10)

    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write .*checkpoints/step-20: no space left on the device"):
        save(tmp_path, 20)
    monkeypatch.undo()
    found = newest_whole_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 10
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-10"]


def test_a_folder_that_only_looks_like_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    save(tmp_path, 10)
    shutil.copytree(tmp_path / "checkpoints" / "step-10", tmp_path / "checkpoints" / "step-10.bak")
    assert [checkpoint.step for checkpoint in find_checkpoints(tmp_path)] == [10]


def newest_of_a_folder_each(rank: int, world: int, folder: str) -> str:
    run = Path(folder) / str(rank)
    if rank == 0:
        save(run, 10)
    try:
        return str(newest_whole_checkpoint(run))
    except UserError as error:
        return str(error)


def test_ranks_that_see_other_checkpoints_all_stop(tmp_path: Path) -> None:
    for message in on_ranks(2, newest_of_a_folder_each, str(tmp_path)):
        assert "the list of checkpoints" in message
        assert "differs between ranks: [[10], []]" in message
