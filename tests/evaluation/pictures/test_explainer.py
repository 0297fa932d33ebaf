"""Maps of networks small enough to compute their evidence by hand, and of real ones."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from evaluation.data.backbones.opened import GrayInput, InputOptions, open_backbone
from evaluation.pictures.explainer import Explainer, NoMap, explainer_of
from evaluation.pictures.grad_cam import GradCam
from evaluation.pictures.token_relevance import TokenRelevance, patch_cells, recorded_attention
from infra.arrays import Float32
from ssl_core.model.architectures import build_network

CPU = torch.device("cpu")


class SquaredMeans(nn.Module):
    """A convolution, and the squares of its channels' means as features."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Tanh())

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images).mean(dim=(2, 3)) ** 2


class OneBlock(nn.Module):
    """A class token that attends to four patches: the whole of a vision transformer that a hand can compute."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 3, 4, stride=4)
        self.class_token = nn.Parameter(torch.randn(1, 1, 3))

    def tokens(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        return torch.cat([self.class_token.expand(len(images), 1, 3), patches], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.tokens(images)[:, None]
        return F.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0, 0]


@pytest.fixture(autouse=True)
def fixed_weights() -> None:
    torch.manual_seed(0)


def directions(size: int, count: int = 2) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(count, size)).astype(np.float32))


def test_grad_cam_is_the_sum_of_channels_weighted_by_their_mean_gradients() -> None:
    network, images, weights = SquaredMeans(), torch.rand(2, 1, 5, 4), directions(3)
    found = GradCam(network, "layer", network.layer, (5, 4)).evidence(images, weights)
    channels = network.layer(images).detach()
    gradients = weights * 2 * channels.mean(dim=(2, 3)) / 20  # of the squared mean over 20 cells
    torch.testing.assert_close(found, (gradients[:, :, None, None] * channels).sum(dim=1))


def test_relevance_of_one_block_is_its_positive_weighted_attention() -> None:
    network, images, weights = OneBlock(), torch.rand(2, 1, 8, 8), directions(3)
    cells = patch_cells(network, images)
    assert cells == (2, 2)
    found = TokenRelevance(network, cells).evidence(images, weights)
    tokens = network.tokens(images).detach()
    attention = torch.einsum("nd,njd->nj", tokens[:, 0], tokens).div(math.sqrt(3)).softmax(dim=1)
    gradient = torch.einsum("njd,nd->nj", tokens, weights)  # of the class token's output, a mean of the values
    expected = (attention * gradient).clamp(min=0)[:, 1:]
    torch.testing.assert_close(found, expected.view(2, 2, 2))


def test_the_map_of_averaged_features_is_the_mean_of_both_maps_and_shows_only_what_speaks_for_the_score() -> None:
    network, images = SquaredMeans(), torch.rand(2, 1, 4, 4)
    weights = directions(3).numpy()
    explainer = Explainer(GradCam(network, "layer", network.layer, (4, 4)), CPU)
    plain = explainer.maps([images], weights)
    np.testing.assert_allclose(explainer.maps([images, images.flip(-1)], weights), plain, rtol=1e-4, atol=1e-7)
    against = explainer.maps([images], -weights)
    assert ((plain == 0) | (against == 0)).all() and (plain + against > 0).all()


def test_torchvision_vit_attends_by_the_recorded_function() -> None:
    network = VisionTransformer(8, 4, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=8)
    network.heads = nn.Identity()
    backbone = GrayInput(network, "vit_b_32", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).eval()
    images = torch.rand(1, 1, 8, 8)
    expected = backbone(images)
    with recorded_attention() as attention:
        torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4)
    assert [tuple(each.shape) for each in attention] == [(1, 2, 5, 5)] * 2
    maps = explainer_of(backbone, 8, CPU).maps([images], directions(12, 1).numpy())
    assert maps.shape == (1, 2, 2) and maps.max() > 0


def for_and_against(explainer: Explainer, size_px: int, features: int) -> Float32:
    """Return the sum of the maps for a score and for its negative: with random weights, one of the two may be empty."""
    images, weights = torch.rand(2, 1, size_px, size_px), directions(features).numpy()
    return explainer.maps([images], weights) + explainer.maps([images], -weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size_px", "cells", "place"),
    [
        ("resnet18", 64, (4, 4), "layer3"),
        ("wide_resnet50_2", 128, (4, 4), "layer4"),
        ("densenet121", 128, (4, 4), "features,"),
        ("densenet121", 64, (4, 4), "denseblock3"),
        ("convnext_tiny", 128, (4, 4), "features.7"),
        ("timm/resnet50", 128, (4, 4), "layer4"),
        ("timm/wide_resnet50_2", 64, (4, 4), "layer3"),
        ("timm/densenet121", 128, (4, 4), "features.norm5"),
        ("timm/convnext_tiny", 128, (4, 4), "stages.3"),
        ("timm/vit_small_patch16_224", 64, (4, 4), "attention"),
        ("timm/vit_small_patch16_dinov3", 64, (4, 4), "attention"),
        ("vit_b_16", 64, (4, 4), "attention"),
    ],
)
def test_usual_networks_have_maps(name: str, size_px: int, cells: tuple[int, int], place: str) -> None:
    network = build_network(name, size_px)
    backbone = GrayInput(network.module, name, (0.5,), (0.25,)).eval()
    explainer = explainer_of(backbone, size_px, CPU)
    assert explainer.method.cells == cells and place in explainer.method.method
    maps = for_and_against(explainer, size_px, network.feature_size)
    assert maps.shape == (2, *cells) and (maps.max(axis=(1, 2)) > 0).all()


@pytest.mark.slow
def test_the_last_map_of_a_densenet_is_the_one_before_its_last_relu() -> None:
    """That ReLU is no layer, and works in place: the map must not be the numbers that it leaves."""
    network = build_network("densenet121", 128)
    backbone = GrayInput(network.module, "densenet121", (0.5,), (0.25,)).eval()
    images, weights = torch.rand(2, 1, 128, 128), directions(1024)
    found = explainer_of(backbone, 128, CPU).method.evidence(images, weights)
    layer = network.module.get_submodule("features")
    with torch.inference_mode():
        channels = layer((images - 0.5) / 0.25)
    active = (channels > 0).float().mean(dim=(2, 3))  # of the cells, the share that passes the gradient on
    expected = ((weights * active)[:, :, None, None] * channels).sum(dim=1) / 16
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_network_of_another_kind_has_no_map_and_the_reason_names_it() -> None:
    network = build_network("timm/swin_tiny_patch4_window7_224", 224)
    with pytest.raises(NoMap, match=r"^There is no map for timm/swin_tiny_patch4_window7_224: "):
        explainer_of(GrayInput(network.module, network.name, (0.5,), (0.25,)).eval(), 224, CPU)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "options"), [("dinov2", {"mlp_ratio": 2}), ("vit", {"intermediate_size": 32})])
def test_vits_of_transformers_have_maps(model: str, options: dict[str, int], tmp_path: Path) -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}
    transformers.AutoModel.from_config(transformers.AutoConfig.for_model(model, **small, **options)).save_pretrained(
        tmp_path
    )
    size_px = 64
    backbone = open_backbone(str(tmp_path), "compare", InputOptions(size_px, [0.5], [0.5])).load()
    explainer = explainer_of(backbone, size_px, CPU)
    assert explainer.method.cells == (4, 4)
    assert (for_and_against(explainer, size_px, 16).max(axis=(1, 2)) > 0).all()


@pytest.mark.slow
def test_a_convolutional_model_of_transformers_has_none(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    transformers.ResNetModel(config).save_pretrained(tmp_path)
    backbone = open_backbone(str(tmp_path), "compare", InputOptions(64, [0.5], [0.5])).load()
    with pytest.raises(NoMap, match="There is no map for transformers/resnet"):
        explainer_of(backbone, 64, CPU)
