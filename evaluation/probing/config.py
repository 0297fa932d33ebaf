"""The options of a probe."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from evaluation.data.backbones.opened import InputOptions
from evaluation.data.labeled_sets import ProbeData
from evaluation.fitting.finetuning.config import FinetuneConfig
from evaluation.results.presets import PRESETS, Balance, PresetName, Split, Uncertain
from infra.configuration.options import key, require_at_least, require_resamples, require_seed, setting
from infra.errors import require
from infra.urls import require_no_credentials
from ssl_core.views.parameters import Fit


@dataclass(frozen=True)
class ProbeConfig:
    """Options of a probe, which scores frozen features by logistic regression.

    Args:
        run_folder: run whose checkpoints to probe; results.json is written there. Without a run, name --backbones
        data: labeled shards to probe on
        tasks: what to tell apart, by built-in names such as chexpert5, or by YAML files such as ./mine.yaml; by default
            the task of each dataset, or for images of your own the one that their labels imply
        positive: the positive class of images of your own that have two classes
        train_on: name of the set that all classifiers are fitted to, for external validation
        test_on: names of the sets that they are tested on, every image of each; by default all others in --data.shards.
            The set of --train_on among them is tested on its own test part
        presets: gazda2021 (the paper's protocol), rigorous, or both
        checkpoints: all, last, or epochs such as [10,25,50,100]
        controls: also probe the untrained backbone, raw pixels, the image's border, view/sex/age, shuffled labels, and
            the dataset and the official part that an image comes from; without these, scores mean little
        untrained_seeds: draws of the untrained backbone's weights; its row is their mean, and its comparisons are over
            patients and draws
        few_labels: also probe with 1, 5, 10 and 25 percent of the labels (only rigorous; last checkpoint and controls)
        finetune: end-to-end training of the last checkpoint's backbone, next to the frozen probe
        select: also choose a checkpoint without labels, and judge that choice by the labels; writes selection.json
        pictures: write pictures of test images, with what the probe says of them, into the folder pictures/
        probe_fit: how an image that is not square becomes a square: pad (its longer side fits, its border is repeated
            beside it), squash (each side is scaled alone) or square (the longer side is cut about the center)
        mirrored: average the features of an image and of its mirror image
        watch: probe each new checkpoint of a live pretraining until it ends
        executor: image decoder: dali, torchvision, or auto (DALI if installed)
        local_batch: images that go through the backbone at once, at least 1
        search: ray (Ray Tune) or serial (in this process); the results are the same
        cores: cores of this machine that Ray uses; all by default
        address: Ray cluster to use instead of this machine, such as auto or ray://head:10001
        folds: folds of the cross-validation that chooses C, at least 2; 8 (gazda2021) and 5 (rigorous) by default
        repeats: repetitions of rigorous's cross-validation, each with other parts
        bootstrap_resamples: resamples of the patients for confidence intervals, at least 100; 0 for no intervals
        uncertain: meaning of a positive label of -1: ignore (leave the image out), zeros or ones; overrides the tasks
        balance: equally many images of each class in development (that part only), by class (in both parts) or by view
            (the same within each view), or none; overrides the default of the task
        split: official, or ignore (a dataset with an official split is divided a second time, as if it had none, and
            gets rows of its own, which rigorous cross-validates)
        exclude: audit.json of an audit of these datasets; of images that show the same picture, only the one that the
            audit lets stay is probed
        compare: also probe weights of others, as [NAME=WEIGHTS,...]: a run, a checkpoint, an export, published weights
            in the local cache such as torchvision/resnet50.IMAGENET1K_V2 or timm/resnet50.a1_in1k, FILE@NETWORK, or the
            folder of a vision model of transformers
        backbones: probe such weights without a run; the first are compared with the others
        out: folder for the results of --backbones
        input: the images that the weights take: those of --compare, of --backbones and of the run. A run takes size_px
            only; it keeps its own mean and standard deviation
        allow_overlap: probe test images even if pretraining saw them or the same pictures, and mark their rows
        seed: determines parts, folds and the bootstrap
    """

    run_folder: Path | None = None
    data: ProbeData = field(default_factory=lambda: ProbeData([]))  # an error, which names the option
    presets: list[PresetName] = field(default_factory=lambda: list(PRESETS))
    checkpoints: Literal["all", "last"] | list[int] = "all"
    controls: bool = True
    untrained_seeds: int = 5
    few_labels: bool = True
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    select: bool = False
    pictures: bool = True
    probe_fit: Fit = "pad"
    mirrored: bool = False
    watch: bool = False
    executor: Literal["auto", "dali", "torchvision"] = "auto"
    local_batch: int = 64
    search: Literal["ray", "serial"] = "ray"
    cores: int | None = None
    address: str | None = None
    folds: int | None = None
    repeats: int = 1
    bootstrap_resamples: int = 1000
    tasks: list[str] = field(default_factory=list)
    positive: str | None = None
    train_on: str | None = None
    test_on: list[str] = field(default_factory=list)
    uncertain: Uncertain | None = None
    balance: Balance | None = None
    split: Split = "official"
    exclude: Path | None = None
    compare: list[str] = field(default_factory=list)
    backbones: list[str] = field(default_factory=list)
    out: Path | None = None
    input: InputOptions = field(default_factory=InputOptions)
    allow_overlap: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range, or for options that exclude each other."""
        self._require_one_subject()
        require_no_credentials(self.address or "", key(self, "address"))
        require(
            bool(self.presets) and len(set(self.presets)) == len(self.presets),
            f"{setting(self, 'presets')} must name gazda2021, rigorous or both, each once",
        )
        require(
            self.train_on is not None or not self.test_on,
            f"{setting(self, 'test_on')} needs the set that classifiers are fitted to: {key(self, 'train_on')}=NAME",
        )
        require(
            len(set(self.test_on)) == len(self.test_on),
            f"{setting(self, 'test_on')} names a set twice; name each once",
        )
        require_at_least(self, "untrained_seeds", 1, "try 5")
        require_at_least(self, "local_batch", 1, "try 64")
        require_at_least(self, "cores", 1, "leave it out for all")
        require(
            self.address is None or (self.search == "ray" and self.cores is None),
            f"{setting(self, 'address')} names a Ray cluster and excludes {key(self, 'search')}=serial and "
            f"{key(self, 'cores')}; remove one of them",
        )
        require(
            self.controls or self.checkpoints != [],
            f"{key(self, 'checkpoints')}=[] and {key(self, 'controls')}=false leave nothing to probe; name an epoch, "
            "or all",
        )
        require_at_least(self, "folds", 2, "try 5")
        require(
            self.finetune.epochs == 0 or self.folds is None or self.folds > 2,
            f"{setting(self, 'folds')} leaves fine-tuning no image to train on, because one fold chooses the epoch and "
            f"another one the threshold; use {key(self, 'folds')}=3 or more",
        )
        require_at_least(self, "repeats", 1, "try 3")
        require_resamples(self)
        require_seed(self)
        require(
            not self.select or (self.checkpoints not in ("last", []) and len(self.checkpoints) > 1),
            f"{key(self, 'select')}=true needs several checkpoints, but {setting(self, 'checkpoints')} names fewer "
            "than two; leave it out for all",
        )

    @property
    def folder(self) -> Path:
        """The folder of the results: the run's, or that of a probe without a run."""
        folder = self.run_folder or self.out
        assert folder is not None, "checked at the start"
        return folder

    def _require_one_subject(self) -> None:
        """Raise UserError unless a run or backbones are named, with options that concern them."""
        backbones = setting(self, "backbones")
        if self.run_folder is not None:
            require(
                not self.backbones,
                f"{backbones} are probed without a run; put them beside one with {key(self, 'compare')}, or leave the "
                "run out",
            )
            require(
                self.out is None, f"{setting(self, 'out')} is for {key(self, 'backbones')}; a run keeps its results"
            )
            for name in ("mean", "std"):
                require(
                    bool(self.compare) or getattr(self.input, name) is None,
                    f"{setting(self.input, name)} is for {key(self, 'compare')}; a run keeps its own, so remove it",
                )
            return
        require(
            bool(self.backbones),
            "nothing to probe: name a run (sternum probe RUN_FOLDER), or backbones without one "
            f"(--{key(self, 'backbones')}=[NAME=WEIGHTS] --{key(self, 'out')}=FOLDER)",
        )
        require(self.out is not None, f"{backbones} needs a folder for the results: --{key(self, 'out')}=FOLDER")
        for name, default in (("compare", []), ("checkpoints", "all"), ("select", False), ("watch", False)):
            hint = f"add them to {key(self, 'backbones')}" if name == "compare" else "remove it"
            require(getattr(self, name) == default, f"{setting(self, name)} needs a run; {hint}")
        require(
            self.finetune.epochs == 0,
            f"{setting(self.finetune, 'epochs')} needs a run; leave it out",
        )
