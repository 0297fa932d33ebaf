import numpy as np
import pytest
import torch
from torch import nn

from evaluation.fitting.finetuning.config import FinetuneConfig
from evaluation.fitting.finetuning.network import FinetunedNetwork
from evaluation.fitting.finetuning.rates import build_adamw, rate_factors, require_blocks, set_rate
from evaluation.probing.config import ProbeConfig
from infra.configuration.options import registered
from infra.errors import UserError
from ssl_core.model.encoder import Backbone
from tests.support.tiny_resnet import TINY_RESNET


def network_of(backbone: nn.Module) -> FinetunedNetwork:
    return FinetunedNetwork(backbone, outputs=2, size_px=32)


def test_rates_fall_by_the_same_factor_from_block_to_block_and_not_within_one() -> None:
    factors = rate_factors(network_of(Backbone(TINY_RESNET, 32)), FinetuneConfig(layer_decay=0.5))
    expected = {"head": 1.0, "backbone.resnet.layer2.0": 0.5, "backbone.resnet.layer1.0": 0.25}
    expected |= {"backbone.resnet.conv1": 0.125, "backbone.resnet.bn1": 0.125}
    for name, factor in factors.items():
        assert [factor] == [value for start, value in expected.items() if name.startswith(f"{start}.")], name


def test_without_decay_every_network_has_one_rate() -> None:
    network = network_of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    assert set(rate_factors(network, FinetuneConfig()).values()) == {1.0}
    groups = build_adamw(network, FinetuneConfig(weight_decay=0.1)).param_groups
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.1]


def test_first_step_moves_each_weight_by_the_rate_of_its_block() -> None:
    """AdamW's first step is the rate times the sign of the gradient, if the gradient is not tiny."""
    network = network_of(Backbone(TINY_RESNET, 32))
    config = FinetuneConfig(layer_decay=0.5, weight_decay=0.0)
    optimizer = build_adamw(network, config)
    set_rate(optimizer, 0.01)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, factor in rate_factors(network, config).items():
        moved = before[name] - network.get_parameter(name).detach()
        np.testing.assert_allclose(moved, 0.01 * factor, rtol=1e-3)


def test_a_network_with_unknown_blocks_is_refused_before_it_is_trained() -> None:
    require_blocks(FinetuneConfig(epochs=1), "timm/pit_ti_224", 224)
    with registered(ProbeConfig), pytest.raises(UserError) as caught:
        require_blocks(FinetuneConfig(epochs=1, layer_decay=0.75), "timm/pit_ti_224", 224)
    assert str(caught.value) == (
        "finetune.layer_decay=0.75 needs to know the blocks of the network, but timm does not name those of "
        "timm/pit_ti_224; leave it out"
    )
