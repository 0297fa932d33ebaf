import pytest
import torch

from ssl_core.model.architectures import build_network
from ssl_core.model.depth import block_depths

BLOCKS = {"resnet18": 8, "densenet121": 6 + 12 + 24 + 16, "convnext_tiny": 3 + 3 + 9 + 3, "vit_b_16": 12}


@pytest.mark.parametrize(("name", "blocks"), BLOCKS.items())
def test_depth_counts_the_blocks_from_the_stem_to_the_last_one(name: str, blocks: int) -> None:
    with torch.device("meta"):
        network = build_network(name, 32)
    depths = block_depths(network, "layer_decay")
    assert list(depths) == [parameter for parameter, _ in network.module.named_parameters()]
    values = list(depths.values())
    assert values == sorted(values)
    assert set(values) == set(range(blocks + 1))
    assert depths[f"{network.stems[0]}.weight"] == 0


def test_depth_of_a_resnet_is_the_same_in_both_libraries() -> None:
    ours, theirs = (block_depths(build_network(name, 32), "layer_decay") for name in ("resnet18", "timm/resnet18"))
    assert ours == theirs
    assert ours["layer2.0.downsample.0.weight"] == ours["layer2.0.conv1.weight"] == 3
