import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from infra.errors import UserError
from infra.storage.files import sha256_file
from ssl_core.model.architectures import build_network
from ssl_core.model.published import IMAGENET, published_weights
from ssl_core.model.weights import Fit, fit, load, read_weights

State = dict[str, Tensor]
IMAGE = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))
COLOR = IMAGE.expand(-1, 3, -1, -1)


def state_of(model: nn.Module, seed: int = 0) -> State:
    """A state dict whose every number was drawn, statistics of batch norm too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2, generator=generator)
            elif value.is_floating_point() and value.dim() == 1:
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return model.state_dict()


@pytest.fixture(scope="module")
def resnet() -> torchvision.models.ResNet:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None)
    state_of(model)
    return model.eval()


@pytest.fixture(scope="module")
def features(resnet: torchvision.models.ResNet) -> Tensor:
    return features_of(resnet, "fc")


@torch.no_grad()
def features_of(model: nn.Module, classifier: str) -> Tensor:
    before = model.get_submodule(classifier)
    model.set_submodule(classifier, nn.Identity())
    result: Tensor = model(COLOR)
    model.set_submodule(classifier, before)
    return result


def saved(content: object, path: Path) -> Path:
    if path.suffix == ".safetensors":
        assert isinstance(content, dict)
        save_file({name: value.clone() for name, value in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def fitted(path: Path, name: str = "resnet18") -> tuple[Fit, Tensor]:
    """Load a file into a network; return what became of it, and the network's features of the gray images."""
    network = build_network(name, 64)
    result = fit(read_weights(path, path.name), network)
    load(result, network.module)
    with torch.no_grad():
        return result, network.module.eval()(IMAGE)


def with_prefix(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def moco(state: State) -> dict[str, object]:
    """A checkpoint of MoCo v2: a head of its own, the momentum encoder, the queue, and the optimizer."""
    query = {name: value for name, value in state.items() if not name.startswith("fc.")}
    query |= {"fc.0.weight": torch.zeros(512, 512), "fc.2.weight": torch.zeros(128, 512)}
    other = {name: torch.zeros_like(value) for name, value in query.items()}
    encoders = with_prefix(other, "module.encoder_k.") | with_prefix(query, "module.encoder_q.")
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.03}]}
    return {
        "epoch": 200,
        "arch": "resnet18",
        "state_dict": encoders | {"module.queue": torch.zeros(128, 8)},
        "optimizer": optimizer,
    }


def solo_learn(state: State) -> dict[str, object]:
    momentum = {name: torch.zeros_like(value) for name, value in state.items()}
    return {"state_dict": with_prefix(momentum, "momentum_backbone.") | with_prefix(state, "backbone.")}


def byol(state: State) -> dict[str, object]:
    momentum = {name: torch.zeros_like(value) for name, value in state.items()}
    return {"model": with_prefix(momentum, "target_network.net.") | with_prefix(state, "online_network.net.")}


def lightly(state: State) -> State:
    """The children of a ResNet in a `Sequential`, as in lightly's examples."""
    model = torchvision.models.resnet18(weights=None)
    model.load_state_dict(state)
    return with_prefix(nn.Sequential(*list(model.children())[:-1]).state_dict(), "backbone.")


@pytest.mark.parametrize(
    ("pack", "suffix", "prefix"),
    [
        (lambda state: with_prefix(state, "backbone."), ".safetensors", "backbone."),
        (moco, ".pth.tar", "state_dict.module.encoder_q."),
        (lightly, ".pt", "backbone."),
        pytest.param(lambda state: state, ".safetensors", "", marks=pytest.mark.slow),
        pytest.param(lambda state: state, ".pth", "", marks=pytest.mark.slow),
        pytest.param(lambda state: with_prefix(state, "module."), ".pth", "module.", marks=pytest.mark.slow),
        pytest.param(byol, ".ckpt", "model.online_network.net.", marks=pytest.mark.slow),
        pytest.param(solo_learn, ".ckpt", "state_dict.backbone.", marks=pytest.mark.slow),
    ],
)
def test_a_file_gives_the_features_of_the_network_that_wrote_it(
    pack: Callable[[State], object],
    suffix: str,
    prefix: str,
    resnet: torchvision.models.ResNet,
    features: Tensor,
    tmp_path: Path,
) -> None:
    path = saved(pack(resnet.state_dict()), tmp_path / f"weights{suffix}")
    result, loaded = fitted(path)
    torch.testing.assert_close(loaded, features, rtol=1e-5, atol=1e-5)
    assert (result.prefix, result.share, result.missing, result.misshapen) == (prefix, 1.0, [], [])
    assert result.changes == ["3 channels of conv1.weight summed into one"]
    assert "nothing left random" in str(result)
    assert read_weights(path, "x").sha256 == sha256_file(path)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
@pytest.mark.parametrize(
    ("name", "builder", "classifier"),
    [
        ("resnet50", lambda: torchvision.models.resnet50(weights=None), "fc"),
        ("timm/resnet50", lambda: timm.create_model("resnet50"), "fc"),
        ("densenet121", lambda: torchvision.models.densenet121(weights=None), "classifier"),
        (
            "convnext_tiny",
            lambda: torchvision.models.convnext_tiny(weights=None, stochastic_depth_prob=0),
            "classifier.2",
        ),
        ("timm/convnext_atto", lambda: timm.create_model("convnext_atto"), "head.fc"),
        ("vit_b_32", lambda: torchvision.models.vit_b_32(weights=None, image_size=64), "heads.head"),
        ("timm/vit_tiny_patch16_224", lambda: timm.create_model("vit_tiny_patch16_224", img_size=64), "head"),
    ],
)
def test_state_dicts_of_torchvision_and_timm_give_the_same_features(
    name: str, builder: Callable[[], nn.Module], classifier: str, prefix: str, tmp_path: Path
) -> None:
    model = builder().eval()
    state = state_of(model)
    result, loaded = fitted(saved(with_prefix(state, prefix), tmp_path / "weights.pth"), name)
    expected = features_of(model, classifier)
    torch.testing.assert_close(loaded, expected, rtol=1e-5, atol=1e-5)
    assert (result.prefix, result.share, result.others) == (prefix, 1.0, [])
    assert {key.removeprefix(prefix) for key in result.classifier} == {f"{classifier}.weight", f"{classifier}.bias"}


@pytest.mark.slow
def test_torchvisions_resnet_50_and_timms_have_one_set_of_names(tmp_path: Path) -> None:
    state = state_of(torchvision.models.resnet50(weights=None))
    path = saved(state, tmp_path / "resnet50.pth")
    results = [fitted(path, name) for name in ("resnet50", "timm/resnet50")]
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_names_of_old_densenets_are_read(tmp_path: Path) -> None:
    state = state_of(torchvision.models.densenet121(weights=None))
    old = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", name): value for name, value in state.items()}
    assert any(".norm.1." in name for name in old)
    result, _ = fitted(saved(old, tmp_path / "old.pth"), "densenet121")
    assert (result.share, result.missing) == (1.0, [])


def test_what_is_missing_skipped_and_left_random_is_counted_and_named(
    resnet: torchvision.models.ResNet, tmp_path: Path
) -> None:
    state = resnet.state_dict() | {"queue": torch.zeros(3)}
    for name in ("bn1.weight", "layer1.0.conv1.weight"):
        del state[name]
    result, _ = fitted(saved(state, tmp_path / "some.pth"))
    assert result.missing == ["bn1.weight", "layer1.0.conv1.weight"]
    assert (result.classifier, result.others) == (["fc.weight", "fc.bias"], ["queue"])
    line = str(result)
    assert "left random: 2 (bn1.weight, layer1.0.conv1.weight)" in line
    assert "skipped the classifier: 2 (fc.weight, fc.bias); skipped others: 1 (queue)" in line
    assert 0.99 < result.share < 1


class Planted:
    """Unpickling it creates a folder."""

    def __init__(self, bait: Path) -> None:
        self.bait = bait

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.bait),)


def refusal(path: Path, name: str = "resnet18") -> str:
    with pytest.raises(UserError) as error:
        fitted(path, name)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_in_a_file_never_runs(zipped: bool, resnet: torchvision.models.ResNet, tmp_path: Path) -> None:
    bait, path = tmp_path / "bait", tmp_path / "planted.pth"
    content = {"state_dict": resnet.state_dict(), "hook": Planted(bait)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    assert "planted.pth is damaged, or holds more than tensors, and Sternum runs no code from a file" in refusal(path)
    assert not bait.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.99])
def test_a_truncated_file_is_refused(
    suffix: str, share: float, resnet: torchvision.models.ResNet, tmp_path: Path
) -> None:
    path = saved(resnet.state_dict(), tmp_path / f"half{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert re.search(r"half\.\w+ is damaged|half\.\w+ is a damaged safetensors file", refusal(path))


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: state | {name: change(state[name])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            changed("layer1.0.conv1.weight", lambda value: value.clone().index_fill_(0, torch.tensor(2), torch.nan)),
            r"bad\.pth holds 576 values in layer1\.0\.conv1\.weight that are not finite; .*take another file",
        ),
        (
            changed("bn1.running_var", lambda value: value / 0),
            r"holds 64 values in bn1\.running_var that are not finite",
        ),
        (
            changed("conv1.weight", lambda value: value.repeat(1, 2, 1, 1)[:, :4]),
            r"bad\.pth is for images of 4 channels \(conv1\.weight\), but resnet18 takes 1 here; use a file for 1 or 3",
        ),
        (
            lambda state: {name: value for name, value in state.items() if "layer4" not in name},
            r"bad\.pth does not hold a resnet18: 24\.9% of .*; at least 90% are needed: name the architecture",
        ),
        (lambda state: {"epoch": 3}, r"bad\.pth holds no tensors; name a file with the state_dict\(\) of a model"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(
    change: Callable[[State], State], message: str, resnet: torchvision.models.ResNet, tmp_path: Path
) -> None:
    assert re.search(message, refusal(saved(change(resnet.state_dict()), tmp_path / "bad.pth")))


@pytest.mark.parametrize("name", ["resnet34", "timm/vit_tiny_patch16_224"])
def test_a_file_of_another_network_is_refused(name: str, resnet: torchvision.models.ResNet, tmp_path: Path) -> None:
    assert re.search(
        rf"resnet18\.pth does not hold a {name}: .* left random: \d+ \(.*at least 90% are needed",
        refusal(saved(resnet.state_dict(), tmp_path / "resnet18.pth"), name),
    )


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of torch and of the Hugging Face hub."""
    from huggingface_hub import constants  # noqa: PLC0415

    torch_cache, hub_cache = tmp_path / "torch" / "checkpoints", tmp_path / "hub"
    torch_cache.mkdir(parents=True)
    hub_cache.mkdir()
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub_cache))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "torchvision/resnet18.IMAGENET1K_V1",
            r"is not in torch's cache, and Sternum downloads no weights; save https://\S+/resnet18-f37072fd\.pth as "
            r"\S+/torch/checkpoints/resnet18-f37072fd\.pth, or name a file",
        ),
        (
            "timm/resnet18.a1_in1k",
            r"is not in the cache \S+/hub, and Sternum downloads no weights; run `hf download timm/resnet18\.a1_in1k "
            r"model\.safetensors` on a machine with a network",
        ),
        ("torchvision/resnet18.IMAGENET22K", r"it has resnet18\.DEFAULT, resnet18\.IMAGENET1K_V1$"),
        ("torchvision/resnet19", r"names no network of torchvision"),
        ("timm/resnet18.none", r"names no weights of timm/resnet18; timm has .*a1_in1k"),
        ("timm/resnet19", r"is no network of timm .*; did you mean timm/resnet18"),
    ],
)
def test_published_weights_that_are_not_there_are_named_with_a_way_out(name: str, message: str, caches: Path) -> None:
    with pytest.raises(UserError, match=message):
        published_weights(name, f"model.init={name}")


def test_published_weights_are_found_in_the_caches_and_checked_by_their_names(
    resnet: torchvision.models.ResNet, caches: Path
) -> None:
    name = "torchvision/resnet18.IMAGENET1K_V1"
    saved(resnet.state_dict(), caches / "torch/checkpoints/resnet18-f37072fd.pth")
    with pytest.raises(UserError, match=r"is damaged in the cache: the SHA-256 of .* is not that in its name"):
        published_weights(name, name)
    snapshot = caches / "hub/models--timm--resnet18.a1_in1k/snapshots/0"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("0")
    path = saved(resnet.state_dict(), snapshot / "model.safetensors")
    found = published_weights("timm/resnet18.a1_in1k", "model.init")
    assert (found.path, found.network, found.input) == (path, "timm/resnet18", IMAGENET)
