"""Sources of features: checkpoints, weights of others, and the controls to compare them with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Literal, NamedTuple

from torch import nn

from evaluation.data.backbones.opened import OpenedBackbone
from evaluation.data.features import RawPixels
from evaluation.results.rows import ProbeKind
from infra.configuration.options import SEEDS
from infra.errors import UserError, require
from ssl_core.checkpoints.checkpoint import Checkpoint, find_checkpoints
from ssl_core.checkpoints.tensors import load_backbone
from ssl_core.model.encoder import Backbone, build_encoder
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.pretraining.initial_weights import initial_sha256, start_from

UNTRAINED: Final = "untrained backbone"  # name of its row, which all its draws share
INITIAL: Final = "initial weights"

CheckpointChoice = Literal["all", "last"] | Sequence[int]  # a number is an epoch


class OwnInput(NamedTuple):
    """Images on the scale 0 to 1: their sides, and whether they are reduced without aliasing."""

    size_px: int
    antialias: bool


@dataclass(frozen=True)
class FeatureSource:
    """A network whose features are probed.

    Attributes:
        name: name in the tables
        kind: a checkpoint, weights to compare it with, or one of the controls
        backbone: loads or builds the network
        epoch: epoch of a checkpoint
        step: step of a checkpoint
        seed: seed of the weights of an untrained backbone
        own_input: images of a network that normalizes them itself; by default the input is that of the run
    """

    name: str
    kind: ProbeKind
    backbone: Callable[[], nn.Module]
    epoch: float | None = None
    step: int | None = None
    seed: int | None = None
    own_input: OwnInput | None = None

    def judged(self) -> "FeatureSource":
        """Return the source in the place of a run's last checkpoint, which all others are compared with."""
        return replace(self, kind="checkpoint")


def pixels_source() -> FeatureSource:
    """Return the control without a network, raw pixels."""
    return FeatureSource("32 x 32 raw pixels", "pixels", RawPixels)


def untrained_sources(
    untrained: Callable[[int], nn.Module], first_seed: int, count: int, own_input: OwnInput | None = None
) -> list[FeatureSource]:
    """Return draws of an untrained backbone: one is only one draw of weights, and draws differ.

    Args:
        untrained: builds the backbone with the random weights of a seed; the first is that from which a run started
        first_seed: seed of the first draw
        count: number of draws
        own_input: as in `FeatureSource`
    """
    seeds = [(first_seed + draw) % SEEDS for draw in range(count)]
    return [
        FeatureSource(
            f"{UNTRAINED}, draw {draw}", "untrained", partial(untrained, seed), seed=seed, own_input=own_input
        )
        for draw, seed in enumerate(seeds, start=1)
    ]


def initial_source(run: Path, pretraining: PretrainConfig) -> list[FeatureSource]:
    """Return the control "initial weights" of a run that began with model.init; none for one that began at random.

    Raises:
        UserError: if these weights are no longer those that the run began with
    """
    if pretraining.model.init is None:
        return []
    began_with = find_checkpoints(run)[-1].state.config.get("model.init")
    sha256 = initial_sha256(pretraining)
    require(
        sha256 == began_with,
        f"model.init={pretraining.model.init} of {run} has the SHA-256 {sha256}, but the run began with {began_with}; "
        "put that file back, or leave the controls out",
    )
    return [FeatureSource(INITIAL, "initial", partial(_initial_backbone, pretraining))]


def _initial_backbone(pretraining: PretrainConfig) -> Backbone:
    encoder = build_encoder(pretraining.model, pretraining.seed, pretraining.views.size_px)
    start_from(pretraining, encoder)
    return encoder.backbone.eval()


def compared_source(name: str, backbone: OpenedBackbone) -> FeatureSource:
    """Return a backbone that the run has nothing to do with as a source of features under a name."""
    return FeatureSource(
        name, "compared", backbone.load, own_input=OwnInput(backbone.input.size_px, backbone.antialias)
    )


def checkpoint_sources(run: Path, pretraining: PretrainConfig, choice: CheckpointChoice) -> list[FeatureSource]:
    """Return the chosen checkpoints of a run, in order.

    Raises:
        UserError: if there is no checkpoint, or a checkpoint's architecture differs from the run's configuration.
    """
    checkpoints = choose_checkpoints(run, choice)
    for checkpoint in checkpoints:
        if checkpoint.state.backbone != pretraining.model.backbone:
            raise UserError(
                f"{checkpoint.path} holds a {checkpoint.state.backbone}, but model.backbone in {run / 'config.yaml'} "
                f"is {pretraining.model.backbone}; probe it in the run that wrote it"
            )
    names = [f"epoch {round(checkpoint.epoch, 2):g}" for checkpoint in checkpoints]
    return [
        FeatureSource(
            name if names.count(name) == 1 else f"{name}, step {checkpoint.step}",
            "checkpoint",
            partial(load_backbone, checkpoint),
            checkpoint.epoch,
            checkpoint.step,
        )
        for name, checkpoint in zip(names, checkpoints, strict=True)
    ]


def choose_checkpoints(run: Path, choice: CheckpointChoice, what: str = "checkpoints") -> list[Checkpoint]:
    """Return the chosen checkpoints of a run; an epoch is the first checkpoint with that many whole epochs.

    Args:
        run: the run
        choice: all, last, or epochs
        what: the option, for messages

    Raises:
        UserError: if the run has no checkpoint, or none of a chosen epoch
    """
    checkpoints = find_checkpoints(run)
    if not checkpoints:
        raise UserError(f"{run} holds no checkpoint; pretrain first: sternum pretrain --help")
    if choice == "all":
        return list(checkpoints)
    if choice == "last":
        return [checkpoints[-1]]
    chosen = []
    for epoch in choice:
        of_epoch = [checkpoint for checkpoint in checkpoints if int(checkpoint.epoch) == epoch]
        if not of_epoch:
            epochs = ", ".join(f"{checkpoint.epoch:g}" for checkpoint in checkpoints)
            raise UserError(f"{what} names epoch {epoch}, but {run} has only epochs {epochs}; choose among these")
        chosen.append(of_epoch[0])
    return chosen
