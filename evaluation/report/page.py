"""`report.html`: one self-contained page about a run or a probe of backbones, to mail, print and keep."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import jinja2

from evaluation.report.backbone_table import backbone_table
from evaluation.report.findings import dataset_sections, preset_sections
from evaluation.report.pictures import Picture, loss_picture
from evaluation.report.selection_tables import selection_tables
from evaluation.report.shard_folders import ShardFolder, shard_folders
from evaluation.report.task_tables import parts_table
from evaluation.results import paper
from evaluation.results.notes import describe_overlap
from evaluation.results.results import read_results
from evaluation.results.selection import read_selection
from infra import config as configuration
from infra.files import write_atomic
from infra.metrics import read_metrics
from ssl_core.checkpoints.checkpoint import Checkpoint, find_checkpoints
from ssl_core.pretraining.config import PretrainConfig

REPORT_NAME: Final = "report.html"

# Files and folders of a run, in the order in which a reader needs them.
_FILES: Final = (
    ("config.yaml", "the whole configuration; --config reads it back"),
    ("metrics.jsonl", "loss, speed and learning rate, one JSON line for each logged step"),
    ("events", "the same for TensorBoard: tensorboard --logdir RUN"),
    ("checkpoints", "weights and state, one folder for each step kept"),
    ("features", "frozen features, named by a hash of weights, images and preprocessing; may be deleted"),
    ("results.json", "every score of this page, in full precision"),
    ("selection.json", "the choice of a checkpoint without labels"),
    ("table3.md", "the paper's Table III next to this run, also as table3.csv and table3.tex"),
)


@dataclass(frozen=True)
class Pretraining:
    """What the page says of a run beside its scores.

    Attributes:
        config: its configuration
        config_text: the same as YAML
        metrics: logged steps that have a loss
        checkpoints: its checkpoints
        data: its shards
    """

    config: PretrainConfig
    config_text: str
    metrics: list[dict[str, float]]
    checkpoints: list[Checkpoint]
    data: list[ShardFolder]

    @property
    def steps(self) -> int:
        """Steps done at the last logged one."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def epoch(self) -> float | None:
        """Epochs done at the last logged step."""
        return self.metrics[-1].get("epoch") if self.metrics else None

    @property
    def hours(self) -> float:
        """Hours between the first and the last logged step."""
        return (self.metrics[-1]["time_s"] - self.metrics[0]["time_s"]) / 3600 if self.metrics else 0.0

    @property
    def loss(self) -> Picture | None:
        """Figure of the loss."""
        return loss_picture(self.metrics) if self.metrics else None


def report(folder: Path) -> Path:
    """Write `report.html` about a run, or about backbones that were probed without one.

    The page names the parts that a run does not have yet.

    Returns:
        The path of the page.

    Raises:
        UserError: if it is the folder of neither.
    """
    results, selection = read_results(folder), read_selection(folder)
    pretraining = None if results and results.run is None else _pretraining(folder)
    files = [(name, content, (folder / name).exists()) for name, content in _FILES]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        name=folder.resolve().name,
        folder=str(folder.resolve()),
        version=version("sternum"),
        pretraining=pretraining,
        results=results,
        presets=preset_sections(results) if results else [],
        datasets=dataset_sections(results) if results else [],
        outside=backbone_table(results) if results and results.outside else None,
        task_parts=[parts_table(results, task) for task in results.tasks] if results else [],
        describe_overlap=describe_overlap,
        paper=paper.PAPER if results and any(paper.in_paper(dataset) for dataset in results.datasets) else None,
        selection=selection,
        selection_tables=selection_tables(selection) if selection else [],
        files=files if pretraining else [file for file in files if file[2]],
    )
    write_atomic(folder / REPORT_NAME, page)
    return folder / REPORT_NAME


def _pretraining(run: Path) -> Pretraining:
    config = configuration.load(PretrainConfig, run / "config.yaml", command="pretrain")
    return Pretraining(
        config=config,
        config_text=(run / "config.yaml").read_text(encoding="utf-8"),
        metrics=[line for line in read_metrics(run) if "loss" in line],
        checkpoints=find_checkpoints(run),
        data=shard_folders(config.data),
    )
