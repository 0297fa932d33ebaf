from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from evaluation.data.backbones.opened import InputOptions, OpenedBackbone, named_backbones, open_backbone
from evaluation.data.labeled_sets import ProbeData
from evaluation.probing.config import ProbeConfig
from evaluation.probing.probe import probe
from evaluation.results.notes import NO_RUN_NOTE, notes_on
from infra.configuration import config as configuration
from infra.errors import UserError
from infra.storage.files import sha256_file
from ssl_core.checkpoints.ancestor import Ancestor
from ssl_core.checkpoints.checkpoint import MODEL, find_checkpoints
from ssl_core.checkpoints.tensors import load_backbone, load_state, save_checkpoint
from ssl_core.pretraining.config import PretrainConfig
from tests.support.exports import write_export
from tests.support.probe_results import made_results
from tests.support.tiny_resnet import TINY_RESNET

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def opened(weights: str, options: InputOptions | None = None) -> OpenedBackbone:
    return open_backbone(weights, f"compare: {weights}", options or InputOptions())


def check_features(model: nn.Module, classifier: str, network: str, path: Path, prefix: str) -> None:
    """A saved state dict has the features of its own library for the gray image in three normalized channels."""
    torch.save({f"{prefix}{name}": value for name, value in model.state_dict().items()}, path)
    backbone = opened(f"{path}@{network}", InputOptions(size_px=64)).load()
    model.set_submodule(classifier, nn.Identity())
    image = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        color = (image.expand(-1, 3, -1, -1) - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1)
        torch.testing.assert_close(backbone(image), model.eval()(color), rtol=1e-5, atol=1e-5)


def test_a_state_dict_has_the_features_of_its_own_library(tmp_path: Path) -> None:
    model = torchvision.models.resnet18(weights=None)
    check_features(model, "fc", "resnet18", tmp_path / "weights.pth", "backbone.")


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
@pytest.mark.parametrize(
    ("network", "builder"),
    [
        ("resnet50", lambda: torchvision.models.resnet50(weights=None)),
        ("timm/resnet50", lambda: timm.create_model("resnet50")),
        ("timm/efficientnet_b0", lambda: timm.create_model("efficientnet_b0")),
    ],
)
def test_state_dicts_have_the_features_of_their_own_library(
    network: str, builder: Callable[[], nn.Module], prefix: str, tmp_path: Path
) -> None:
    model = builder()
    check_features(model, "classifier" if "efficient" in network else "fc", network, tmp_path / "weights.pth", prefix)


def test_a_checkpoint_is_compared_with_the_input_of_its_own_run(run: Path) -> None:
    last = find_checkpoints(run)[-1]
    for folder in (run, last.path):
        other = opened(str(folder), InputOptions(size_px=32))
        image = torch.rand(2, 1, 32, 32)
        with torch.no_grad():
            expected = load_backbone(last)((image - 0.5) / 0.25)
            torch.testing.assert_close(other.load()(image), expected)
        assert (other.origin.architecture, other.input) == ("resnet18", (32, (0.5,), (0.25,)))
        assert other.sha256 == sha256_file(last.path / MODEL)


def test_a_checkpoint_of_an_early_stage_is_compared_at_its_own_size(run: Path) -> None:
    last = find_checkpoints(run)[-1]
    of_stage = save_checkpoint(run, replace(last.state, step=99, size_px=24), *load_state(last))
    assert opened(str(of_stage.path)).input.size_px == 24
    assert opened(str(of_stage.path), InputOptions(size_px=32)).input.size_px == 32


@pytest.mark.parametrize("channels", [1, 3])
def test_an_export_is_compared_with_the_input_that_it_names(channels: int, tmp_path: Path) -> None:
    network = write_export(tmp_path / "export", channels=channels)
    other = opened(str(tmp_path / "export"))
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        expected = network.module((image - 0.5) / 0.25)
        torch.testing.assert_close(other.load()(image), expected, rtol=1e-5, atol=1e-5)
    assert (other.origin.architecture, other.input.size_px) == ("timm/test_vit", 32)
    assert other.sha256 == sha256_file(tmp_path / "export" / "model.safetensors")
    assert other.record("exp").trained_on == ""  # it has no ancestors


def test_a_note_says_what_an_export_states_of_its_training(tmp_path: Path) -> None:
    begun = [Ancestor("run/model.safetensors", "1" * 64, 3.0, "ab" * 32), Ancestor("imagenet.pth", "2" * 64)]
    write_export(tmp_path / "export", ancestors=begun)
    record = opened(str(tmp_path / "export")).record("exp")
    stated = f"cell (SHA-256 of the data {'ab' * 32}); its run began with imagenet.pth"
    assert record.trained_on == stated
    notes = notes_on(replace(made_results(), run=None, outside=[record]))
    assert f"exp: the export states that it was trained on {stated}." in notes
    assert NO_RUN_NOTE in notes and "not compared with the images that they were trained on" in NO_RUN_NOTE


def begun_from(run: Path, weights: Path) -> None:
    """Say in a run's configuration and checkpoints that it began from these weights."""
    config = configuration.load(PretrainConfig, run / "config.yaml", command="pretrain")
    configuration.save(replace(config, model=replace(config.model, init=str(weights))), run / "config.yaml")
    for checkpoint in find_checkpoints(run):
        model, optimizer = load_state(checkpoint)
        state = replace(checkpoint.state, config={"model.init": sha256_file(weights)})
        save_checkpoint(run, state, model, optimizer)


@pytest.mark.slow
def test_compared_and_initial_weights_are_rows_beside_the_checkpoint(
    run: Path, shards: Path, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    other, weights = make_run(tmp_path / "other", shards, steps=(5,)), tmp_path / "weights.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), weights)
    begun_from(run, weights)
    config = ProbeConfig(
        run,
        ProbeData([str(shards)]),
        ["gazda2021"],
        checkpoints="last",
        executor="torchvision",
        search="serial",
        few_labels=False,
        folds=2,
        bootstrap_resamples=100,
        pictures=False,
        compare=[f"file={weights}@resnet18", f"other run={other}"],
        input=InputOptions(size_px=32),
    )
    results = probe(config)
    rows = {row.features: row for row in results.rows}
    assert [rows[name].kind for name in ("initial weights", "file", "other run")] == ["initial", "compared", "compared"]
    assert {item.other for item in results.comparisons} >= {"initial weights", "file", "other run"}
    file, run_record = results.outside
    assert (file.name, file.sha256, file.size_px, file.mean[0]) == ("file", sha256_file(weights), 32, 0.485)
    assert (run_record.network, run_record.mean) == ("resnet18", [0.5])
    torch.save({}, weights)
    with pytest.raises(UserError, match=r"model\.init=\S+ of \S+ has the SHA-256 \w+, but the run began with \w+; put"):
        probe(replace(config, compare=[]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weights.pth", r"compare: 'weights\.pth' must be NAME=WEIGHTS, such as imagenet=torchvision/resnet50"),
        ("a=nothing.pth@resnet50", r"compare: a=nothing\.pth@resnet50 does not exist; name a file"),
        ("a=weights.pth", r"^compare: a=weights\.pth needs its network: add @NETWORK at its end, such as @resnet50$"),
        ("a=weights.pth@resnet19", r"compare: a=weights\.pth@resnet19 must be one of "),
        ("a=folder", r"compare: a=folder is a folder without checkpoints or config\.json; name a run"),
        ("a=torchvision/resnet18.IMAGENET1K_V1", r"is not in torch's cache, and Sternum downloads no weights"),
    ],
)
def test_weights_that_cannot_be_found_are_named(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    Path("weights.pth").touch()
    Path("folder").mkdir()
    with pytest.raises(UserError, match=message):
        named_backbones([text], "compare", InputOptions())


def test_the_weights_of_a_single_backbone_are_asked_for_their_network_without_a_name(tmp_path: Path) -> None:
    weights = tmp_path / "mine.pth"
    weights.touch()
    with pytest.raises(UserError) as caught:
        open_backbone(str(weights), f"backbone={weights}", InputOptions())
    assert str(caught.value) == f"backbone={weights} needs its network: add @NETWORK at its end, such as @resnet50"


def saved(path: Path, state: Mapping[str, object]) -> str:
    torch.save(dict(state), path)
    return f"{path}@{TINY_RESNET}"


@pytest.fixture(scope="module")
def tiny() -> dict[str, torch.Tensor]:
    return torchvision.models.get_model(TINY_RESNET).state_dict()


def test_files_that_do_not_fit_their_network_are_named(tiny: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    for name in ("bn1.running_mean", "layer1.0.bn1.weight"):
        with pytest.raises(UserError, match=rf"lacks 1 of .*{name}|left random: 1 \({name}\)"):
            opened(saved(path, {key: value for key, value in tiny.items() if key != name}))
    deeper = {"layer1.1.conv1.weight": torch.zeros(64, 64, 3, 3)}  # as a ResNet with more blocks has
    with pytest.raises(UserError, match=r"1 value\(s\) for layers that a tiny_resnet does not have \(layer1\.1\.conv"):
        opened(saved(path, tiny | deeper))
    with pytest.raises(UserError, match="is for images of 4 channels; use weights for 1 or 3 channels"):
        opened(saved(path, tiny | {"conv1.weight": torch.zeros(64, 4, 7, 7)}))
    with pytest.raises(UserError, match=r"takes 3 channel\(s\), but its mean or standard deviation has 2"):
        opened(saved(path, tiny), InputOptions(size_px=32, mean=[0.5, 0.5]))
    with pytest.raises(UserError, match="holds more than tensors, and Sternum runs no code from a file"):
        opened(saved(path, {"epoch": Path("a pickle may hold any object")}))
    with pytest.raises(UserError, match="has the name a twice; give each backbone its own"):
        named_backbones([f"a={saved(path, tiny)}"] * 2, "compare", InputOptions(size_px=32))


def test_what_a_file_holds_beside_the_network_is_counted_and_named(
    tiny: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """As in a training checkpoint: the network behind a prefix, with a projection head and a momentum copy."""
    beside = {"module.queue": torch.zeros(8), "module.projector.0.weight": torch.zeros(2, 128)}
    state = {f"module.backbone.{name}": value for name, value in tiny.items()} | beside
    backbone = opened(saved(tmp_path / "weights.pth", state), InputOptions(size_px=32))
    summary = backbone.record("moco").summary
    assert "prefix 'module.backbone.'; nothing left random; skipped the classifier: 2 (module.backbone.fc.w" in summary
    assert "skipped others: 2 (module.queue, module.projector.0.weight)" in summary


def test_a_stem_of_one_channel_takes_the_gray_image(tiny: dict[str, torch.Tensor], tmp_path: Path) -> None:
    gray = tiny | {"conv1.weight": tiny["conv1.weight"].sum(dim=1, keepdim=True)}
    color = opened(saved(tmp_path / "color.pth", tiny), InputOptions(32, [0.5], [0.25]))
    single = opened(saved(tmp_path / "gray.pth", gray), InputOptions(32, [0.5], [0.25]))
    assert (color.input.mean, single.input.mean) == ((0.5, 0.5, 0.5), (0.5,))
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(single.load()(image), color.load()(image), rtol=1e-4, atol=1e-4)


def test_the_untrained_backbone_depends_on_its_seed_alone(tiny: dict[str, torch.Tensor], tmp_path: Path) -> None:
    backbone = opened(saved(tmp_path / "weights.pth", tiny), InputOptions(size_px=32))
    first, again, other = (backbone.untrained(seed).state_dict()["network.conv1.weight"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
