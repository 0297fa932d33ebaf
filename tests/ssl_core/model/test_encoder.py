import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_core.model.encoder import (
    Backbone,
    ModelConfig,
    ProjectionHead,
    build_encoder,
    untrained_backbone,
)


def test_projection_head_is_the_papers_table_1() -> None:
    head = ProjectionHead(2048, ModelConfig().projection_width, ModelConfig().projection_size)
    shapes = {name: tuple(parameter.shape) for name, parameter in head.named_parameters()}
    assert shapes == {
        "hidden.weight": (2048, 2048),
        "hidden.bias": (2048,),
        "norm.weight": (2048,),
        "norm.bias": (2048,),
        "output.weight": (128, 2048),
    }


def test_batch_norm_behind_the_head_adds_no_parameter_and_leaves_the_others_as_they_are() -> None:
    plain, normed = (
        build_encoder(ModelConfig("resnet18", 8, 4, head_norm=head_norm), seed=3) for head_norm in (False, True)
    )
    assert all(torch.equal(value, normed.state_dict()[name]) for name, value in plain.state_dict().items())
    assert [name for name, _ in normed.named_parameters()] == [name for name, _ in plain.named_parameters()]
    features = torch.randn(64, 512)
    before, after = plain.head(features), normed.head(features)
    assert torch.allclose(after, (before - before.mean(0)) / before.std(0, correction=0), atol=1e-2)
    assert after.mean(0).abs().max() < 1e-5


@pytest.mark.parametrize(("name", "size"), [("resnet18", 512), ("wide_resnet50_2", 2048)])
def test_backbone_gives_the_features_after_pooling(name: str, size: int) -> None:
    backbone = Backbone(name).eval()
    assert backbone.feature_size == size
    assert backbone(torch.zeros(2, 1, 40, 48)).shape == (2, size)


def test_backbone_gives_the_features_of_torchvisions_for_the_same_gray_image_in_three_channels() -> None:
    torch.manual_seed(3)
    original = torchvision.models.resnet18(weights=None)
    torch.manual_seed(3)
    backbone = Backbone("resnet18").eval()
    original.fc = torch.nn.Identity()
    image = torch.rand(2, 1, 64, 64)
    assert torch.allclose(backbone(image), original.eval()(image.expand(-1, 3, -1, -1)), atol=1e-5)


@settings(max_examples=4)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(32, 70), st.integers(32, 70))
def test_a_gray_image_has_the_same_features_in_one_channel_and_in_three(
    seed: int, images: int, height: int, width: int
) -> None:
    backbone = untrained_backbone(ModelConfig(backbone="resnet18", projection_width=8), seed).double()
    gray = torch.rand(images, 1, height, width, dtype=torch.float64)
    color = torchvision.models.resnet18(weights=None).double().eval()
    color.fc = torch.nn.Identity()
    state = backbone.network.module.state_dict()
    color.load_state_dict(state | {"conv1.weight": state["conv1.weight"].repeat(1, 3, 1, 1) / 3})
    assert torch.allclose(color(gray.expand(-1, 3, -1, -1)), backbone(gray), rtol=1e-9, atol=1e-12)


def test_the_seed_alone_determines_the_weights() -> None:
    config = ModelConfig(backbone="resnet18", projection_width=8)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second = build_encoder(config, 7).state_dict(), build_encoder(config, 7).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = untrained_backbone(config, 8).state_dict()
    assert not torch.equal(first["backbone.resnet.conv1.weight"], other["resnet.conv1.weight"])
