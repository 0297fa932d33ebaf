import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from infra.errors import UserError
from infra.monitoring.metrics import read_metrics
from infra.monitoring.status import read_status
from infra.ranks.processes import Ranks
from infra.storage.files import sha256_file
from sharding.reading.data_config import DataConfig
from ssl_core.checkpoints.ancestor import Ancestor
from ssl_core.checkpoints.checkpoint import MODEL, find_checkpoints
from ssl_core.checkpoints.export.folder import open_export
from ssl_core.checkpoints.export.write import write_contents
from ssl_core.model.encoder import ModelConfig, build_encoder
from ssl_core.pretraining.config import PretrainConfig, TrainConfig
from ssl_core.pretraining.initial_weights import RECORD, initial_sha256, start_from
from ssl_core.pretraining.plan import check_plan
from ssl_core.pretraining.train import pretrain
from ssl_core.views.spec import ViewSpec
from tests.support.exports import write_export
from tests.support.faulty_training import Fault, small_config, train_through
from tests.support.tiny_resnet import TINY_RESNET


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A state dict of the network with one channel and another seed."""
    path = tmp_path / "others.pth"
    torch.save(backbone_state(seed=9), path)
    return path


def backbone_state(seed: int) -> dict[str, Tensor]:
    return build_encoder(ModelConfig(TINY_RESNET, 32, 16), seed).backbone.network.module.state_dict()


@pytest.fixture
def config(tmp_path: Path, simulated_shards: Path, weights: Path) -> PretrainConfig:
    return PretrainConfig(
        run_folder=tmp_path / "run",
        data=DataConfig([str(simulated_shards)], global_batch=16, lanes=4),
        views=ViewSpec(size_px=32),
        model=ModelConfig(TINY_RESNET, 32, 16, init=str(weights)),
        train=TrainConfig(epochs=1, precision="fp32", log_every_steps=1),
        executor="torchvision",
    )


def initialized(config: PretrainConfig, init: Path) -> dict[str, Tensor]:
    config = replace(config, model=replace(config.model, init=str(init)))
    encoder = build_encoder(config.model, config.seed)
    assert start_from(config, encoder) is not None
    return encoder.state_dict()


def stopped_after(config: PretrainConfig, steps: int) -> PretrainConfig:
    return replace(config, train=replace(config.train, max_steps=steps))


@pytest.mark.slow
def test_a_run_that_started_from_weights_and_was_stopped_ends_with_the_same_bits(
    config: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(config, Ranks())
    printed = capsys.readouterr().err
    unbroken = replace(config, run_folder=tmp_path / "unbroken")
    assert f"starting from {config.model.init} (SHA-256 " in printed
    assert re.search(
        r"100\.0% of the \S+ million parameters of tiny_resnet; nothing left random; proj.* random", printed
    )
    pretrain(stopped_after(unbroken, 2), Ranks())
    pretrain(unbroken, Ranks())
    first, second = (find_checkpoints(run.run_folder)[-1] for run in (config, unbroken))
    assert all(
        torch.equal(value, load_file(second.path / MODEL)[name])
        for name, value in load_file(first.path / MODEL).items()
    )
    assert first.state.config["model.init"] == initial_sha256(config)
    assert second.state.ancestors == [Ancestor(str(config.model.init), str(initial_sha256(config)))]
    record = json.loads((config.run_folder / RECORD).read_text())
    assert (record["sha256"], record["backbone"]["missing"]) == (initial_sha256(config), [])
    assert "conv1.weight" in record["backbone"]["values"]
    random = replace(config, run_folder=tmp_path / "random", model=replace(config.model, init=None))
    pretrain(stopped_after(random, 1), Ranks())
    assert read_metrics(random.run_folder)[0]["loss"] != read_metrics(config.run_folder)[0]["loss"]


def test_the_same_weights_elsewhere_are_taken_and_others_are_refused_on_resume(
    config: PretrainConfig, weights: Path
) -> None:
    pretrain(stopped_after(config, 1), Ranks())
    moved = weights.rename(weights.with_name("moved.pth"))
    with pytest.raises(UserError, match=r"model\.init=\S+others\.pth does not exist; name a file with weights"):
        pretrain(stopped_after(config, 2), Ranks())
    pretrain(stopped_after(replace(config, model=replace(config.model, init=str(moved))), 2), Ranks())
    torch.save(backbone_state(seed=4), weights)
    message = r"the weights of model\.init \(SHA-256 \w+\) are not the first ones of the run in .*; use those with SHA"
    with pytest.raises(UserError, match=message):
        pretrain(config, Ranks())
    status = read_status(config.run_folder)
    assert status is not None and status.state == "refused"
    with pytest.raises(UserError, match=r"the weights of model\.init \(SHA-256 None\) are not the first ones"):
        pretrain(replace(config, model=replace(config.model, init=None)), Ranks())


def test_a_run_that_began_at_random_is_not_continued_from_weights(config: PretrainConfig) -> None:
    pretrain(stopped_after(replace(config, model=replace(config.model, init=None)), 1), Ranks())
    with pytest.raises(UserError, match=r"are not the first ones of the run in .*; leave model\.init out to resume it"):
        pretrain(config, Ranks())


def test_a_run_and_its_checkpoints_are_starts_with_the_projection_head(config: PretrainConfig, tmp_path: Path) -> None:
    first = replace(config, model=replace(config.model, init=None))
    pretrain(
        replace(stopped_after(first, 2), train=replace(config.train, max_steps=2, checkpoint_every_steps=1)), Ranks()
    )
    early, late = find_checkpoints(first.run_folder)
    for init, checkpoint in ((first.run_folder, late), (late.path, late), (early.path, early)):
        state = initialized(config, init)
        saved = load_file(checkpoint.path / MODEL)
        assert all(torch.equal(value, saved[name]) for name, value in state.items() if "num_batches" not in name)
    # Without the head if it has another size.
    other = replace(config, model=replace(config.model, projection_size=8))
    state, untrained = initialized(other, late.path), build_encoder(other.model, other.seed).state_dict()
    assert torch.equal(state["head.output.weight"], untrained["head.output.weight"])
    # The other run goes on; this one still means the checkpoint from which it started.
    second = replace(config, run_folder=tmp_path / "second", model=replace(config.model, init=str(first.run_folder)))
    pretrain(stopped_after(second, 1), Ranks())
    pretrain(stopped_after(first, 3), Ranks())
    assert len(find_checkpoints(first.run_folder)) == 3
    pretrain(stopped_after(second, 2), Ranks())
    third = replace(second, run_folder=tmp_path / "third")
    assert initial_sha256(third) != initial_sha256(second)
    # A run knows all that it descends from, and the data of each.
    state_of_first, state_of_second = late.state, find_checkpoints(second.run_folder)[-1].state
    shutil.rmtree(first.run_folder)
    third = replace(third, model=replace(config.model, init=str(second.run_folder)))
    start = start_from(third, build_encoder(third.model, third.seed))
    assert start is not None
    of_second, of_first = start.ancestors
    assert [of_first] == state_of_second.ancestors
    assert (of_second.epoch, of_first.epoch) == (state_of_second.epoch, state_of_first.epoch)
    assert of_first.shards == of_second.shards == config.data.shards
    assert {of_first.data_identity, of_second.data_identity} == {state_of_first.data_identity}
    assert json.loads((second.run_folder / RECORD).read_text())["ancestors"][0]["weights"] == str(late.path / MODEL)


def test_an_export_is_a_start_with_either_number_of_channels(config: PretrainConfig, tmp_path: Path) -> None:
    for channels in (1, 3):
        export = tmp_path / f"export{channels}"
        weights = write_export(export, TINY_RESNET, channels).module.state_dict()
        state = initialized(config, export)
        for name, value in weights.items():
            torch.testing.assert_close(state[f"backbone.resnet.{name}"], value, rtol=1e-6, atol=1e-8)
        target = export / MODEL
        target.write_bytes(target.read_bytes()[:-1])
        with pytest.raises(UserError, match=r"model\.init=\S+: the export \S+ is damaged: model\.safetensors has"):
            initialized(config, export)


def test_a_start_that_cannot_be_is_one_line(config: PretrainConfig, tmp_path: Path) -> None:
    pretrain(stopped_after(replace(config, model=replace(config.model, init=None)), 1), Ranks())
    [checkpoint] = find_checkpoints(config.run_folder)
    damaged, empty, plain = tmp_path / "damaged", tmp_path / "empty", tmp_path / "plain"
    shutil.copytree(config.run_folder, damaged)
    target = damaged / "checkpoints" / checkpoint.path.name / MODEL
    target.write_bytes(target.read_bytes()[:-1])
    empty.mkdir()
    plain.mkdir()
    save_file({"conv1.weight": torch.zeros(3)}, plain / MODEL)
    for init, message in (
        (damaged, r"model\.init=\S+damaged: \S+step-1 is damaged: .* take another checkpoint"),
        (empty, r"model\.init=\S+empty is a folder without a checkpoint or model\.safetensors"),
        (plain, r"does not hold a tiny_resnet: 0\.0% of .* of another shape, left random: 1 \(conv1"),
    ):
        with pytest.raises(UserError, match=message):
            initialized(config, init)


def test_an_export_hands_on_what_its_weights_saw(config: PretrainConfig, tmp_path: Path) -> None:
    export = tmp_path / "export"
    write_export(export, TINY_RESNET)
    saw, before = Ancestor("run, step 7", "0" * 64, 0.5, "data", splits=["train"]), Ancestor("moco.pth", "1" * 64)
    write_contents(export, replace(open_export(export, "export").contents, ancestors=[saw, before]))
    start = start_from(
        replace(config, model=replace(config.model, init=str(export))), build_encoder(config.model, config.seed)
    )
    assert start is not None
    path = export / MODEL
    assert start.ancestors == [replace(saw, weights=str(path), sha256=sha256_file(path)), before]


@pytest.mark.slow
def test_a_run_that_started_from_weights_and_was_killed_ends_with_the_same_bits(
    config: PretrainConfig, tmp_path: Path
) -> None:
    runs = []
    for name, faults in (("unbroken", []), ("killed", [Fault("kill", rank=1, step=2), Fault("kill", rank=0, step=7)])):
        run = small_config(tmp_path / name, Path(config.data.shards[0]))
        run = replace(run, model=replace(run.model, init=config.model.init))
        assert train_through(run, 2, faults) == 1 + len(faults)
        runs.append(load_file(find_checkpoints(run.run_folder)[-1].path / MODEL))
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


def test_a_plan_names_the_first_weights_and_refuses_those_of_another_network(config: PretrainConfig) -> None:
    assert any(line.startswith(f"starting from {config.model.init} (SHA-256") for line in check_plan(config, Ranks()))
    with pytest.raises(UserError, match=r"others\.pth does not hold a timm/vit_tiny_patch16_224"):
        list(check_plan(replace(config, model=replace(config.model, backbone="timm/vit_tiny_patch16_224")), Ranks()))
    assert not config.run_folder.exists()
