"""What a probe is asked for."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from evaluation.data.labeled_sets import ProbeData
from evaluation.fitting.finetune import FinetuneConfig
from evaluation.results.presets import PRESETS, Balance, PresetName, Uncertain
from infra.errors import require


@dataclass(frozen=True)
class ProbeConfig:
    """Frozen features, logistic regressions, and the paper's Table III beside a stricter protocol and controls.

    Args:
        run_folder: the run whose checkpoints are probed; results.json goes there
        data: the labeled shards, read under the same options as in pretrain
        presets: gazda2021 (the paper's protocol), rigorous, or both
        checkpoints: all, last, or the epochs to probe, such as [10,25,50,100]
        controls: also probe the untrained backbone, raw pixels, the image's border, view/sex/age, shuffled labels, and
            which data set an image is of, without which no score means much
        few_labels: also probe with 1, 5, 10 and 25 percent of the labels (by rigorous; last checkpoint and controls)
        finetune: training the last checkpoint's backbone end to end, beside the frozen probe
        select: also say which checkpoint to choose without labels, and how well such choices do; into selection.json
        watch: probe each new checkpoint of a live pretraining as it appears, until it ends
        executor: what decodes: dali, torchvision, or auto (DALI where it is installed)
        local_batch: images that go through the backbone at once
        search: ray (Ray Tune) or serial (in this process); the results are the same
        cores: of this machine for Ray, all by default
        address: a Ray cluster to use instead of this machine, such as auto or ray://head:10001
        folds: of the cross-validation that chooses C; 8 (gazda2021) and 5 (rigorous) where none are given
        repeats: of rigorous's cross-validation without an official split, each with other parts
        bootstrap_resamples: of the patients, for the intervals; 0 for none
        uncertain: what a positive label of -1 counts as: ignore (its image is left out), zeros or ones
        balance: none, class (as many images of each) or view (in each view), in place of what the task says
        allow_overlap: probe test images that were in the pretraining too, and mark them
        seed: determines parts, folds and the bootstrap
    """

    run_folder: Path
    data: ProbeData
    presets: list[PresetName] = field(default_factory=lambda: list(PRESETS))
    checkpoints: Literal["all", "last"] | list[int] = "all"
    controls: bool = True
    few_labels: bool = True
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    select: bool = False
    watch: bool = False
    executor: Literal["auto", "dali", "torchvision"] = "auto"
    local_batch: int = 64
    search: Literal["ray", "serial"] = "ray"
    cores: int | None = None
    address: str | None = None
    folds: int | None = None
    repeats: int = 1
    bootstrap_resamples: int = 1000
    uncertain: Uncertain = "ignore"
    balance: Balance | None = None
    allow_overlap: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            bool(self.presets) and len(set(self.presets)) == len(self.presets),
            f"presets={self.presets} must name gazda2021, rigorous or both, each once",
        )
        require(self.local_batch >= 1, f"local_batch={self.local_batch} must be at least 1; try 64")
        require(self.cores is None or self.cores >= 1, f"cores={self.cores} must be at least 1; leave it out for all")
        require(
            self.address is None or (self.search == "ray" and self.cores is None),
            f"address={self.address!r} is a Ray cluster, which search=serial does not use and cores does not bound; "
            "leave one of them out",
        )
        require(
            self.controls or self.checkpoints != [],
            "checkpoints=[] and controls=false leave nothing to probe; name an epoch, or all",
        )
        require(self.folds is None or self.folds >= 2, f"folds={self.folds} must be at least 2; try 5")
        require(self.repeats >= 1, f"repeats={self.repeats} must be at least 1; try 3")
        require(
            self.bootstrap_resamples == 0 or self.bootstrap_resamples >= 100,
            f"bootstrap_resamples={self.bootstrap_resamples} must be 0 or at least 100; try 1000",
        )
        require(0 <= self.seed < 2**63, f"seed={self.seed} must be between 0 and 2^63 - 1; use 0")
        require(
            not self.select or (self.checkpoints not in ("last", []) and len(self.checkpoints) > 1),
            f"select=true chooses among checkpoints, and checkpoints={self.checkpoints} is one; leave it out for all",
        )
