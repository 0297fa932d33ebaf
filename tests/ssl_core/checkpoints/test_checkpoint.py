import errno
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ssl_core.checkpoints.checkpoint
from infra.errors import RunFailed, UserError
from ssl_core.checkpoints.checkpoint import Checkpoint, CheckpointState, find_checkpoints, find_damage
from ssl_core.checkpoints.newest import newest_whole_checkpoint
from ssl_core.checkpoints.tensors import load_backbone, load_state, save_checkpoint
from ssl_core.model.encoder import Encoder, ModelConfig, build_encoder
from tests.support.process_group import on_ranks

MODEL = ModelConfig(backbone="resnet18", projection_width=16, projection_size=8)


def state(step: int) -> CheckpointState:
    return CheckpointState(step, step / 10, "resnet18", "data", 0.5, 0.25, 1, "0.1.0", torch.__version__)


def save(run: Path, step: int, encoder: Encoder | None = None) -> None:
    model = encoder.state_dict() if encoder else {"weight": torch.full((3, 100), step)}
    save_checkpoint(run, state(step), model, {"a/exp_avg": torch.arange(6.0).view(2, 3)})


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


def harm(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if how in ("flip", "cut", "empty"):
        path.write_bytes({"flip": bytes(content), "cut": bytes(content[:-1]), "empty": b""}[how])
    elif how == "folder":
        path.mkdir()
    elif how == "deep":
        path.write_bytes(b'{"version": 1, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    elif how == "pipe":
        os.mkfifo(path)  # opening it blocks forever
    elif how == "dangling link":
        path.symlink_to("nowhere")


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "deep", "missing", "folder", "pipe", "dangling link"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, name: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    harm(tmp_path / "checkpoints" / "step-20" / name, how)
    result = newest_whole_checkpoint(tmp_path)
    assert result is not None
    assert result.step == 10
    printed = capsys.readouterr().err
    assert "step-20 is damaged" in printed
    assert "falling back to the previous checkpoint" in printed
    assert len(printed.splitlines()) == 1


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_from_scratch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    harm(tmp_path / "checkpoints" / "step-10" / "state.json", "missing")
    harm(tmp_path / "checkpoints" / "step-20" / "model.safetensors", "flip")
    expected = (
        r"no checkpoint in .*/checkpoints is whole: .*/step-10 is damaged \(state\.json is missing\); repair the disk, "
    )
    with pytest.raises(RunFailed, match=expected + "or remove that folder to start from scratch"):
        newest_whole_checkpoint(tmp_path)
    assert "step-10 is damaged (state.json is missing); no checkpoint is left" in capsys.readouterr().err


def test_a_disk_that_cannot_be_read_is_no_reason_to_start_from_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 10)

    def unreadable(_: Path) -> str:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(ssl_core.checkpoints.checkpoint, "sha256_file", unreadable)
    with pytest.raises(RunFailed, match=r"is whole: .*/step-10 is damaged \(OSError: .*Stale file handle\); repair"):
        newest_whole_checkpoint(tmp_path)


def test_a_checkpoint_of_another_version_is_refused_rather_than_skipped(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    manifest = tmp_path / "checkpoints" / "step-20" / "manifest.json"
    manifest.write_text('{"version": 2, "parts": []}')
    with pytest.raises(
        UserError, match=r"step-20 is in format 2 .*; this one reads format 1; use that version, or another"
    ):
        newest_whole_checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"step-20 is in format 2 .*; use that version to probe it"):
        load_backbone(Checkpoint(manifest.parent, 20))


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/step-20"])
def test_a_file_where_a_folder_should_be_is_not_skipped_silently(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    if name == "checkpoints":
        with pytest.raises(RunFailed, match=r"checkpoints cannot be read: .*Not a directory"):
            newest_whole_checkpoint(tmp_path)
    else:
        with pytest.raises(RunFailed, match=r"checkpoints is whole: .*/step-20 is damaged"):
            newest_whole_checkpoint(tmp_path)


def test_a_checkpoint_under_the_name_of_another_step_is_damaged(tmp_path: Path) -> None:
    save(tmp_path, 10)
    folder = tmp_path / "checkpoints"
    (folder / "step-10").rename(folder / "step-30")
    (checkpoint,) = find_checkpoints(tmp_path)
    assert find_damage(checkpoint) == "its state.json belongs to step 10"


def test_other_files_and_links_to_the_right_ones_do_no_harm(tmp_path: Path) -> None:
    save(tmp_path, 10)
    folder = tmp_path / "checkpoints" / "step-10"
    (folder / "notes.txt").write_text("mine")
    (folder / "state.json").rename(tmp_path / "elsewhere")
    (folder / "state.json").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "checkpoints" / "README").write_text("mine")
    result = newest_whole_checkpoint(tmp_path)
    assert result is not None
    assert result.step == 10


def test_a_state_without_the_newer_fields_is_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "step-10"
    path.mkdir(parents=True)
    newer = {"samples_masked", "masked_in_epoch", "config"}
    old = {name: value for name, value in asdict(state(10)).items() if name not in newer}
    old["lanes"] = 8  # a field of an earlier version
    (path / "state.json").write_text(json.dumps(old))
    result = Checkpoint(path, 10).state
    assert result == state(10)
    assert (result.samples_masked, result.masked_in_epoch, result.config) == (0, 0, {})


class Planted:
    """Unpickling it creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("in_manifest", [False, True], ids=["", "in the manifest too"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_planted_pickle_is_never_executed(tmp_path: Path, name: str, in_manifest: bool, how: str) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    folder, bait = tmp_path / "checkpoints" / "step-20", tmp_path / "executed"
    content = pickle.dumps(Planted(bait))
    if how == "torch":
        torch.save(Planted(bait), tmp_path / "planted")
        content = (tmp_path / "planted").read_bytes()
    (folder / name).write_bytes(content)
    if in_manifest and name != "manifest.json":
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][name] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    result = newest_whole_checkpoint(tmp_path)
    assert result is not None
    assert result.step == 10
    with pytest.raises(RunFailed, match="step-20 is damaged"):
        load_backbone(Checkpoint(folder, 20))
    if name.endswith("safetensors"):
        with pytest.raises(RunFailed, match="cannot be read"):
            load_state(Checkpoint(folder, 20))
    assert not bait.exists()
    if how == "pickle":
        pickle.loads(content)
    else:
        torch.load(tmp_path / "planted", weights_only=False)
    assert bait.exists()  # so it would have been noticed


def test_a_damaged_checkpoint_is_not_probed(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (checkpoint,) = find_checkpoints(tmp_path)
    file = checkpoint.path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    with pytest.raises(RunFailed, match=r"step-10 is damaged: the SHA-256 of model\.safetensors differs"):
        load_backbone(checkpoint)


@pytest.mark.slow
def test_a_save_that_is_cut_off_leaves_no_checkpoint(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys, torch; from pathlib import Path\n"
        "from ssl_core.checkpoints.checkpoint import CheckpointState\n"
        "from ssl_core.checkpoints.tensors import save_checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"  # the kernel kills the process in the middle of the write
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "state = CheckpointState(5, 0.5, 'resnet18', 'data', 0.5, 0.25, 1, '0', '0')\n"
        "save_checkpoint(Path(sys.argv[1]), state, {'w': torch.zeros(4000)}, {})\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, check=False)
    assert done.returncode != 0
    assert find_checkpoints(tmp_path) == []
    assert newest_whole_checkpoint(tmp_path) is None


def test_a_save_that_does_not_fit_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 10)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=3, f_frsize=4096, f_blocks=1000))
    with pytest.raises(UserError, match=r"checkpoints/step-20: it needs 1\.1 MB, but 0\.0 MB are free; free some"):
        save(tmp_path, 20)
    monkeypatch.undo()
    result = newest_whole_checkpoint(tmp_path)
    assert result is not None
    assert result.step == 10
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
    except RunFailed as error:  # not a UserError: a network disk may have listed late, and starting again helps
        return str(error)


def test_ranks_that_see_other_checkpoints_all_stop(tmp_path: Path) -> None:
    for message in on_ranks(2, newest_of_a_folder_each, str(tmp_path)):
        assert "the list of checkpoints" in message
        assert "differs between ranks: [[10], []]" in message
        assert "all ranks must share this disk" in message


def newest_where_one_rank_finds_damage(rank: int, world: int, folder: str) -> str:
    try:
        return str(newest_whole_checkpoint(Path(folder), speak=rank == 0, verify=rank == 1))
    except (RunFailed, UserError) as error:
        return f"{type(error).__name__}: {error}"


def test_ranks_all_stop_at_damage_that_one_of_them_finds(tmp_path: Path) -> None:
    save(tmp_path, 10)
    manifest = tmp_path / "checkpoints" / "step-10" / "manifest.json"
    for content, expected in (
        ("{}", "RunFailed: no checkpoint in"),
        ('{"version": 2}', f"UserError: {manifest.parent}"),
    ):
        manifest.write_text(content)
        result = on_ranks(2, newest_where_one_rank_finds_damage, str(tmp_path))
        assert [message.startswith(expected) for message in result] == [True, True]


def newest_where_one_rank_looks(rank: int, world: int, folder: str) -> tuple[int, int]:
    result = newest_whole_checkpoint(Path(folder), speak=rank == 0, verify=rank == 1)
    everyone = newest_whole_checkpoint(Path(folder), speak=rank == 0)
    assert result is not None
    assert everyone is not None
    return result.step, everyone.step


def test_ranks_adopt_the_verdict_of_the_rank_that_verifies(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    harm(tmp_path / "checkpoints" / "step-30" / "model.safetensors", "flip")
    assert on_ranks(2, newest_where_one_rank_looks, str(tmp_path)) == [(20, 20), (20, 20)]
    printed = capfd.readouterr().err
    assert (
        printed.count("step-30 is damaged (rank 1: ")
        + printed.count("step-30 is damaged (the SHA-256 of model.safetensors")
        == 2
    )
