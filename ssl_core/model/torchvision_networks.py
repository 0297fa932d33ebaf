"""Networks of torchvision, imported only where one is needed: the import takes more than a second."""

from collections import OrderedDict
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from ssl_core.model.architectures import Network, is_square, one_channel, require_whole_patches


class _Family(NamedTuple):
    """Names of the first and the last layer, and options that turn random draws off."""

    stem: str
    classifier: str
    options: dict[str, Any]


_FAMILIES: Final = {  # by the module of torchvision.models
    "resnet": _Family("conv1", "fc", {}),
    "densenet": _Family("features.conv0", "classifier", {}),
    "convnext": _Family("features.0.0", "classifier.2", {"stochastic_depth_prob": 0.0}),
    "vision_transformer": _Family("conv_proj", "heads.head", {}),
}


def names() -> list[str]:
    """Return the names of torchvision's ResNets, DenseNets, ConvNeXts and ViTs."""
    return [name for name in models.list_models(module=models) if family_of(name) in _FAMILIES]


def family_of(name: str) -> str:
    """Return the family of a network: the module of torchvision that defines it."""
    return str(models.get_model_builder(name).__module__.rpartition(".")[2])


def build(name: str, size_px: int, channels: int) -> Network:
    """Build a network without its classifier, as `build_network` does."""
    family = family_of(name)
    stem, classifier, options = _FAMILIES[family]
    if family == "vision_transformer":
        require_whole_patches(name, size_px, patch_px=int(name.rpartition("_")[2]))  # vit_b_16
        options = {"image_size": size_px}
    module = models.get_model(name, weights=None, **options)
    feature_size = module.get_submodule(classifier).in_features
    if channels == 1:
        module.set_submodule(stem, _one_channel_stem(module.get_submodule(stem)))
    module.set_submodule(classifier, nn.Identity())
    return Network(name, module, family, feature_size, (stem,), (classifier,))


def _one_channel_stem(stem: Any) -> nn.Conv2d:
    has_bias = stem.bias is not None
    single = nn.Conv2d(1, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=has_bias)
    with torch.no_grad():
        single.weight.copy_(one_channel(stem.weight))
        if single.bias is not None:
            single.bias.copy_(stem.bias)
    return single


def resampled_positions(module: Any, name: str, values: Tensor) -> Tensor:
    """Resample the position embedding of a ViT, as `architectures.resampled_positions` does."""
    if name != "encoder.pos_embedding" or values.dim() != 3 or not is_square(values.shape[1] - 1):
        return values
    state = OrderedDict({name: values})
    return interpolate_embeddings(module.image_size, module.patch_size, state)[name]
