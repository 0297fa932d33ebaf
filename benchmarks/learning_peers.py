"""The peers of `benchmarks.learning`: lightly's SimCLR, MoCo v2 and BYOL in the loops of its documentation.

Run as a process of its own. Modules, losses and optimizers are those of lightly's examples, except that SimCLR has the
optimizer, batch and temperature that did best on these images in an earlier comparison (Adam, 128, 0.5). Views are
torchvision's, for gray images, since lightly's transforms are those of color photographs; they come from a DataLoader
with one worker, beside two threads of training. lightly is no dependency of Sternum: pip install lightly.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.common import installed
from benchmarks.learning_features import Weights, save_weights
from benchmarks.learning_ground import all_pixels
from infra.arrays import UInt8
from infra.errors import require
from infra.ranks.devices import has_bf16_matrix_units
from launch.cli import run_command

MEAN, STD = 0.5, 0.25  # of gray levels from 0 to 1, as a user would guess
_MEMORY: Final = 4096  # projections in MoCo's memory bank
_MOMENTUM: Final = 0.996
_WARM_UP_STEPS: Final = 10

Loss = Callable[[Tensor, Tensor], Tensor]


class Views(Dataset[tuple[Tensor, Tensor]]):
    """Two views of each image."""

    def __init__(self, parts: Sequence[UInt8], size_px: int) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self._views = v2.Compose(
            [
                v2.RandomResizedCrop(size_px, scale=(0.3, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomRotation(10),
                v2.RandomApply([v2.GaussianBlur(7, (0.1, 2.0))], 0.5),
                v2.ColorJitter(0.4, 0.4),
            ]
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        part = int(np.searchsorted(self._ends, item, side="right"))
        image = torch.from_numpy(np.array(self._parts[part][item - self._ends[part]]))[None]  # counted from the end
        first, second = ((self._views(image).float() / 255 - MEAN) / STD for _ in range(2))
        return first, second


class Peer(NamedTuple):
    """A trained peer: its weights, the samples it saw, samples/s after the first steps, the mean loss of each epoch."""

    weights: Weights
    samples: int
    images_per_s: float
    loss_by_epoch: list[float]


class Method(NamedTuple):
    """A way to learn. loss: of two views (N, 3, H, W); momentum: called with the share of the run that is done."""

    loss: Loss
    parameters: list[nn.Parameter]
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    global_batch: int
    before_step: Callable[[float], None] = lambda share: None


def simclr(backbone: nn.Module) -> Method:
    """Return lightly's SimCLR."""
    from lightly.loss import NTXentLoss  # noqa: PLC0415
    from lightly.models.modules import SimCLRProjectionHead  # noqa: PLC0415

    head, criterion = SimCLRProjectionHead(512, 512, 128), NTXentLoss(0.5)

    def loss(first: Tensor, second: Tensor) -> Tensor:
        projections = _project(lambda views: head(backbone(views)), torch.cat([first, second]))
        return criterion(*projections.chunk(2))

    parameters = [*backbone.parameters(), *head.parameters()]
    return Method(loss, parameters, lambda of: torch.optim.Adam(of, 5e-4), 128)


def moco(backbone: nn.Module) -> Method:
    """Return lightly's MoCo v2."""
    from lightly.loss import NTXentLoss  # noqa: PLC0415
    from lightly.models.modules import MoCoProjectionHead  # noqa: PLC0415
    from lightly.models.utils import deactivate_requires_grad, update_momentum  # noqa: PLC0415
    from lightly.utils.scheduler import cosine_schedule  # noqa: PLC0415

    head = MoCoProjectionHead(512, 512, 128)
    backbone_momentum, head_momentum = copy.deepcopy(backbone), copy.deepcopy(head)
    deactivate_requires_grad(backbone_momentum)
    deactivate_requires_grad(head_momentum)
    criterion = NTXentLoss(memory_bank_size=(_MEMORY, 128))

    def before_step(share: float) -> None:
        momentum = cosine_schedule(round(1000 * share), 1000, _MOMENTUM, 1)
        update_momentum(backbone, backbone_momentum, m=momentum)
        update_momentum(head, head_momentum, m=momentum)

    def loss(first: Tensor, second: Tensor) -> Tensor:
        query = _project(lambda views: head(backbone(views)), first)
        with torch.no_grad():
            key = _project(lambda views: head_momentum(backbone_momentum(views)), second)
        return criterion(query, key)

    parameters = [*backbone.parameters(), *head.parameters()]
    return Method(loss, parameters, lambda of: torch.optim.SGD(of, 0.06), 256, before_step)


def byol(backbone: nn.Module) -> Method:
    """Return lightly's BYOL."""
    from lightly.loss import NegativeCosineSimilarity  # noqa: PLC0415
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead  # noqa: PLC0415
    from lightly.models.utils import deactivate_requires_grad, update_momentum  # noqa: PLC0415
    from lightly.utils.scheduler import cosine_schedule  # noqa: PLC0415

    head, predictor = BYOLProjectionHead(512, 1024, 256), BYOLPredictionHead(256, 1024, 256)
    backbone_momentum, head_momentum = copy.deepcopy(backbone), copy.deepcopy(head)
    deactivate_requires_grad(backbone_momentum)
    deactivate_requires_grad(head_momentum)
    criterion = NegativeCosineSimilarity()

    def before_step(share: float) -> None:
        momentum = cosine_schedule(round(1000 * share), 1000, _MOMENTUM, 1)
        update_momentum(backbone, backbone_momentum, m=momentum)
        update_momentum(head, head_momentum, m=momentum)

    def target(views: Tensor) -> Tensor:
        with torch.no_grad():
            return _project(lambda images: head_momentum(backbone_momentum(images)), views)

    def loss(first: Tensor, second: Tensor) -> Tensor:
        predicted = [_project(lambda images: predictor(head(backbone(images))), views) for views in (first, second)]
        losses = criterion(predicted[0], target(second)), criterion(predicted[1], target(first))
        return 0.5 * (losses[0] + losses[1])

    parameters = [*backbone.parameters(), *head.parameters(), *predictor.parameters()]
    return Method(loss, parameters, lambda of: torch.optim.SGD(of, 0.06), 256, before_step)


METHODS: Final = {"lightly_simclr": simclr, "lightly_moco": moco, "lightly_byol": byol}


def _project(network: Callable[[Tensor], Tensor], views: Tensor) -> Tensor:
    """Apply a network in the type in which Sternum computes on this machine too."""
    with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16_matrix_units(torch.device("cpu"))):
        return network(views).float()


def three_channels(views: Tensor) -> Tensor:
    """Return gray views (N, 1, H, W) as the three equal channels that torchvision's ResNet takes."""
    return views.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def train(
    name: str,
    parts: Sequence[UInt8],
    *,
    seed: int,
    epochs: int,
    size_px: int,
    max_steps: int | None,
    after_step: Callable[[], None] = lambda: None,
) -> Peer:
    """Train a peer.

    Args:
        name: of the peer
        parts: gray images (N, side, side)
        seed: of weights, order and views
        epochs: passes over all images; a last batch that is not full is left out, as in lightly's examples
        size_px: width and height of a view
        max_steps: stop after this many steps
        after_step: called after each step
    """
    torch.manual_seed(seed)
    backbone = torchvision.models.resnet18()
    backbone.fc = nn.Identity()
    backbone = backbone.to(memory_format=torch.channels_last)
    method = METHODS[name](backbone)
    optimizer = method.optimizer(method.parameters)
    batch = min(method.global_batch, sum(map(len, parts)))
    loader = DataLoader(Views(parts, size_px), batch, shuffle=True, drop_last=True, num_workers=1)
    total = min(epochs * len(loader), max_steps or epochs * len(loader))
    losses, ends_s = list[float](), [time.perf_counter()]
    for step, (first, second) in enumerate(_batches(loader, total)):
        method.before_step(step / total)
        loss = method.loss(three_channels(first), three_channels(second))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
        ends_s.append(time.perf_counter())
        after_step()
        if (step + 1) % len(loader) == 0:
            print(f"epoch {(step + 1) // len(loader)}: loss {np.mean(losses[-len(loader) :]):.4f}", flush=True)
    warm = min(_WARM_UP_STEPS, total - 1)
    rate = (total - warm) * batch / (ends_s[-1] - ends_s[warm])
    by_epoch = [float(np.mean(losses[start : start + len(loader)])) for start in range(0, total, len(loader))]
    return Peer(Weights(backbone.state_dict(), MEAN, STD), total * batch, rate, by_epoch)


def _batches(loader: DataLoader[tuple[Tensor, Tensor]], total: int) -> Iterator[Any]:
    left = total
    while left > 0:
        for batch in loader:
            yield batch
            left -= 1
            if left == 0:
                break


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a peer, write its weights and facts, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=METHODS)
    parser.add_argument("--ground", type=Path, required=True, help="folder that learning's prepare made")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights.safetensors and facts.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size_px", type=int, default=64)
    parser.add_argument("--max_steps", type=int, help="stop after this many steps")
    options = parser.parse_args(arguments)
    require(installed("lightly"), f"recipe={options.peer} needs lightly, which is not installed; pip install lightly")
    peer = train(
        options.peer,
        all_pixels(options.ground),
        seed=options.seed,
        epochs=options.epochs,
        size_px=options.size_px,
        max_steps=options.max_steps,
    )
    save_weights(options.out / "weights.safetensors", peer.weights)
    facts = {name: value for name, value in peer._asdict().items() if name != "weights"}
    (options.out / "facts.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
