"""What a probe judges: the checkpoints of a run, or backbones from anywhere without a run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean

from torch import nn

from evaluation.data.backbones.opened import OpenedBackbone
from evaluation.data.feature_sources import (
    CheckpointChoice,
    FeatureSource,
    OwnInput,
    checkpoint_sources,
    compared_source,
    initial_source,
    pixels_source,
    untrained_sources,
)
from evaluation.data.lineage import Lineage, open_lineage, open_trainings
from evaluation.results.backbones import OutsideBackbone, Run
from infra.configuration import config as configuration
from sharding.reading.fetch import FetchConfig
from ssl_core.checkpoints.ancestor import Ancestor
from ssl_core.checkpoints.checkpoint import find_checkpoints
from ssl_core.model.encoder import untrained_backbone
from ssl_core.model.published import Input
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.pretraining.resume import recipe_of
from ssl_core.views.spec import ViewSpec


class Subject(ABC):
    """Everything that a probe needs to know of what it judges.

    Attributes:
        folder: the results go here
        pretraining: configuration of the run; None without one
        input: the images of the controls, as one gray channel
        views: views for fine-tuning
        outside: backbones that no run of this folder trained, by name
    """

    folder: Path
    pretraining: PretrainConfig | None
    input: Input
    views: ViewSpec
    outside: Mapping[str, OpenedBackbone]

    @property
    def records(self) -> list[OutsideBackbone]:
        """What the results keep of the backbones from elsewhere."""
        return [backbone.record(name) for name, backbone in self.outside.items()]

    @property
    @abstractmethod
    def untrained(self) -> Callable[[int], nn.Module]:
        """Builds the judged backbone with the random weights of a seed."""

    @property
    def _trainings(self) -> dict[str, list[Ancestor]]:
        return {name: backbone.trainings for name, backbone in self.outside.items()}

    @abstractmethod
    def controls(self) -> list[FeatureSource]:
        """Return the controls that have a network."""

    @abstractmethod
    def sources(self) -> list[FeatureSource]:
        """Return what is judged; the last one is compared with all others."""

    @abstractmethod
    def lineage(self, fetch: FetchConfig) -> Lineage:
        """Open the shards that it was pretrained on, as far as they are known."""

    @abstractmethod
    def describe(self, probed: Iterable[FeatureSource], lineage: Lineage) -> Run | None:
        """Return what the results say of the run, given what was probed; None without a run."""


class RunSubject(Subject):
    """The checkpoints of a run, in order, after weights of others to compare them with."""

    pretraining: PretrainConfig

    def __init__(
        self,
        run: Path,
        choice: CheckpointChoice,
        untrained_seeds: int,
        compared: Mapping[str, OpenedBackbone],
        size_px: int | None = None,
    ) -> None:
        """Open the run.

        Args:
            run: the run folder
            choice: its checkpoints that are judged
            untrained_seeds: draws of the untrained backbone's weights
            compared: weights of others, by name
            size_px: width and height of the images; by default those of the views

        Raises:
            UserError: if it has no such checkpoint
        """
        self.folder, self.outside = run, compared
        self.pretraining = configuration.load(PretrainConfig, run / "config.yaml", command="pretrain")
        self._choice, self._untrained_seeds = choice, untrained_seeds
        checkpoint_sources(run, self.pretraining, choice)  # fail early if there is none
        self._newest = newest = find_checkpoints(run)[-1].state
        self.views = self.pretraining.views
        if size_px is not None:
            self.views = self.views.of_size(size_px)
        self.input = Input(self.views.size_px, (newest.pixel_mean,), (newest.pixel_std,))

    @property
    def untrained(self) -> Callable[[int], nn.Module]:
        """Builds the backbone before its first step."""
        return partial(untrained_backbone, self.pretraining.model, size_px=self.pretraining.views.size_px)

    def controls(self) -> list[FeatureSource]:
        """Return raw pixels, the backbone before its first step with other seeds too, and before `model.init`."""
        draws = untrained_sources(self.untrained, self.pretraining.seed, self._untrained_seeds)
        return [pixels_source(), *draws, *initial_source(self.folder, self.pretraining)]

    def sources(self) -> list[FeatureSource]:
        """Return weights of others, and the chosen checkpoints that exist now."""
        compared = [compared_source(name, backbone) for name, backbone in self.outside.items()]
        return [*compared, *checkpoint_sources(self.folder, self.pretraining, self._choice)]

    def lineage(self, fetch: FetchConfig) -> Lineage:
        """Open the shards of the run, of the runs that it descends from, and of weights to compare it with."""
        return open_lineage(self.pretraining.data, self._newest, self._trainings, fetch)

    def describe(self, probed: Iterable[FeatureSource], lineage: Lineage) -> Run:
        """Describe the run."""
        data = self.pretraining.data
        return Run(
            backbone=self.pretraining.model.backbone,
            size_px=self.pretraining.views.size_px,
            probed_px=self.views.size_px,
            global_batch=data.global_batch,
            fraction_percent=data.fraction_percent,
            epochs=max(source.epoch or 0.0 for source in probed),
            seed=self.pretraining.seed,
            recipe=recipe_of(self.pretraining, self._newest.data_identity),
            before=lineage.records,
        )


class BackbonesSubject(Subject):
    """Backbones from anywhere: the first stands where a run has its last checkpoint, the others are compared with it.

    The controls take the input of the first one, and the untrained backbone is its network.
    """

    pretraining = None

    def __init__(
        self, folder: Path, backbones: Mapping[str, OpenedBackbone], untrained_seeds: int, first_seed: int
    ) -> None:
        """Note at least one backbone, and the seeds of the untrained one."""
        self.folder, self.outside = folder, backbones
        self._first = next(iter(backbones))
        self._untrained_seeds, self._first_seed = untrained_seeds, first_seed
        first = backbones[self._first]
        size_px, mean, std = first.input
        self.input = Input(size_px, (fmean(mean),), (fmean(std),))
        self.views = ViewSpec(size_px=size_px, antialias=first.antialias)

    @property
    def untrained(self) -> Callable[[int], nn.Module]:
        """Builds the first backbone with random weights."""
        return self.outside[self._first].untrained

    def controls(self) -> list[FeatureSource]:
        """Return raw pixels, and the first backbone with random weights."""
        own_input = OwnInput(self.input.size_px, self.views.antialias)
        draws = untrained_sources(self.untrained, self._first_seed, self._untrained_seeds, own_input)
        return [pixels_source(), *draws]

    def sources(self) -> list[FeatureSource]:
        """Return the other backbones, and the first one."""
        first, *others = (compared_source(name, backbone) for name, backbone in self.outside.items())
        return [*others, first.judged()]

    def lineage(self, fetch: FetchConfig) -> Lineage:
        """Open the shards of the backbones that runs trained; nothing says what others were trained on."""
        return Lineage(None, [], open_trainings(self._trainings, fetch), has_run=False)

    def describe(self, probed: Iterable[FeatureSource], lineage: Lineage) -> None:
        """Return None."""
        return
