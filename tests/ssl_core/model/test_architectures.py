from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from infra.errors import UserError
from ssl_core.model.architectures import backbone_names, build_network, resampled_positions
from ssl_core.model.encoder import Backbone, ModelConfig
from tests.support.tiny_resnet import TINY_RESNET

SIZE_PX = 32
# The smallest network of each kind; the usual ones are in the slow tests.
SMALL = {"resnet18": 512, "timm/convnext_atto": 320, "timm/vit_tiny_patch16_224": 192}
USUAL = {
    "densenet121": 1024,
    "convnext_tiny": 768,
    "vit_b_16": 768,
    "vit_b_32": 768,
    "timm/resnet50": 2048,
    "timm/swin_tiny_patch4_window7_224": 768,
    "timm/vit_small_patch16_224": 384,
}


def test_the_networks_of_torchvision_are_known_by_name() -> None:
    resnets = {"resnet18", "resnet34", "resnet50", "resnet101", "resnet152"}
    wider = {"wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"}
    densenets = {"densenet121", "densenet161", "densenet169", "densenet201"}
    convnexts = {"convnext_tiny", "convnext_small", "convnext_base", "convnext_large"}
    vits = {"vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"}
    assert resnets | wider | densenets | convnexts | vits == set(backbone_names()) - {TINY_RESNET}


def check_network(name: str, feature_size: int) -> None:
    """A backbone maps one channel to features, draws nothing while it trains, and trains all its parameters."""
    backbone = Backbone(name, SIZE_PX).train()
    assert backbone.feature_size == feature_size
    images = torch.rand(4, 1, SIZE_PX, SIZE_PX)
    before = torch.get_rng_state()
    features = backbone(images)
    assert torch.equal(torch.get_rng_state(), before)
    assert features.shape == (4, feature_size)
    features.square().sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    assert all(name.startswith(f"{backbone.network.family}.") for name, _ in backbone.named_parameters())


@pytest.mark.parametrize(("name", "feature_size"), SMALL.items())
def test_a_network_of_each_kind_gives_features_of_one_channel(name: str, feature_size: int) -> None:
    check_network(name, feature_size)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "feature_size"), USUAL.items())
def test_the_usual_networks_give_features_of_one_channel(name: str, feature_size: int) -> None:
    check_network(name, feature_size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "without_classifier"),
    [
        ("resnet18", lambda model: setattr(model, "fc", nn.Identity())),
        ("densenet121", lambda model: setattr(model, "classifier", nn.Identity())),
        ("convnext_tiny", lambda model: setattr(model.classifier, "2", nn.Identity())),
        ("vit_b_32", lambda model: setattr(model, "heads", nn.Identity())),
    ],
)
def test_a_gray_image_has_the_features_of_torchvisions_network_for_it_in_three_channels(
    name: str, without_classifier: Callable[[nn.Module], None]
) -> None:
    torch.manual_seed(3)
    original = torchvision.models.get_model(name, weights=None, **({"image_size": 64} if "vit" in name else {})).eval()
    without_classifier(original)
    torch.manual_seed(3)
    backbone = Backbone(name, 64).eval()
    image = torch.rand(2, 1, 64, 64)
    assert torch.allclose(backbone(image), original(image.expand(-1, 3, -1, -1)), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg16", r"model\.backbone=vgg16 must be one of .*wide_resnet50_2, or timm/NAME"),
        ("timm/resnet5", r"model\.backbone=timm/resnet5 is no network of timm .*did you mean timm/resnet50"),
        ("timm/hf-hub:someone/model", r"is no network of timm"),
        ("timm/resnet50.a1_in1k", r"names weights, not only a network; use timm/resnet50$"),
    ],
)
def test_an_unknown_network_is_named_with_a_way_out(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelConfig(backbone=name)


@pytest.mark.parametrize(
    ("name", "size_px", "message"),
    [
        ("vit_b_16", 100, r"cuts images into patches of 16 px, which do not divide views of 100 px; try 96 or 112 px"),
        ("timm/vit_tiny_patch16_224", 40, r"patches of 16 px, which do not divide views of 40 px; try 32 or 48 px"),
        ("timm/inception_v3", 32, r"does not take 1 channel\(s\) of 32 px .*; try the 299 px"),
        ("timm/resnetv2_50", 32, r"joins batch norm and other work in one layer \(BatchNormAct2d\)"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(name: str, size_px: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Backbone(name, size_px)


@pytest.mark.parametrize(
    ("name", "position"), [("timm/vit_tiny_patch16_224", "pos_embed"), ("vit_b_32", "encoder.pos_embedding")]
)
def test_positions_of_a_larger_image_are_resampled_and_the_class_token_stays(name: str, position: str) -> None:
    network = build_network(name, 64)
    wanted = network.module.get_parameter(position)
    values = torch.rand(1, 7 * 7 + 1, wanted.shape[2])
    resampled = resampled_positions(network, position, values)
    assert resampled.shape == wanted.shape
    assert torch.equal(resampled[:, 0], values[:, 0])
    assert values.min() - 0.3 < resampled.min() and resampled.max() < values.max() + 0.3
    assert torch.equal(resampled_positions(network, position, values[:, 1:]), values[:, 1:])  # no square
    assert torch.equal(resampled_positions(network, "other", values), values)
