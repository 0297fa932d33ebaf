"""A small ResNet, registered with torchvision as `tiny_resnet`, for tests of runs that do not depend on the network.

It has 0.3 million parameters. Gradients to exchange and checkpoints to write are 40 times smaller than those of
resnet18. Every process that builds it must import this module; the fork server does.
"""

from typing import Any, Final

from torch import nn
from torchvision.models import resnet
from torchvision.models._api import register_model
from torchvision.models.resnet import BasicBlock, ResNet

TINY_RESNET: Final = "tiny_resnet"


def tiny_resnet(**_: Any) -> ResNet:
    """Build the first half of a ResNet with one block a stage; it has no classifier and 128 features."""
    model = ResNet(BasicBlock, [1, 1, 1, 1])
    model.layer3, model.layer4 = nn.Sequential(), nn.Sequential()
    model.fc = nn.Linear(128, 1)  # `Backbone` reads its width
    return model


tiny_resnet.__module__ = resnet.__name__  # Sternum offers the models of this module
register_model(TINY_RESNET)(tiny_resnet)
