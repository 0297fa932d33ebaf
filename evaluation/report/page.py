"""`report.html`: one self-contained page about a run, to mail, print and keep."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import jinja2

from evaluation.data.labeled_sets import display_name
from evaluation.report.findings import dataset_sections, preset_sections
from evaluation.report.pictures import loss_picture
from evaluation.report.selection_tables import selection_tables
from evaluation.report.task_tables import parts_table
from evaluation.results import paper
from evaluation.results.notes import describe_overlap
from evaluation.results.results import read_results
from evaluation.results.selection import read_selection
from infra import config as configuration
from infra.errors import RunFailed, UserError
from infra.files import write_atomic
from infra.metrics import read_metrics
from infra.urls import Location, shown
from sharding.format.manifest import Manifest
from sharding.reading.location import LocalFolder, open_location
from sharding.reading.manifests import read_manifest
from ssl_core.checkpoints.checkpoint import find_checkpoints
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
class ShardFolder:
    """One folder of pretraining shards; the manifest is None if it cannot be read on this machine."""

    folder: str
    label: str
    manifest: Manifest | None


def report(run: Path) -> Path:
    """Write `run/report.html`; the page names the parts that the run does not have yet.

    Returns:
        The path of the page.

    Raises:
        UserError: if `run` is not a run folder.
    """
    config = configuration.load(PretrainConfig, run / "config.yaml", command="pretrain")
    results, selection = read_results(run), read_selection(run)
    metrics = [line for line in read_metrics(run) if "loss" in line]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        name=run.resolve().name,
        folder=str(run.resolve()),
        version=version("sternum"),
        config=config,
        config_text=(run / "config.yaml").read_text(encoding="utf-8"),
        steps=int(metrics[-1]["step"]) if metrics else 0,
        epoch=metrics[-1].get("epoch") if metrics else None,
        hours=(metrics[-1]["time_s"] - metrics[0]["time_s"]) / 3600 if metrics else 0.0,
        checkpoints=find_checkpoints(run),
        loss=loss_picture(metrics) if metrics else None,
        results=results,
        presets=preset_sections(results) if results else [],
        datasets=dataset_sections(results) if results else [],
        task_parts=[parts_table(results, task) for task in results.tasks] if results else [],
        describe_overlap=describe_overlap,
        paper=paper.PAPER if results and any(paper.in_paper(dataset) for dataset in results.datasets) else None,
        selection=selection,
        selection_tables=selection_tables(selection) if selection else [],
        data=[_shard_folder(folder) for folder in config.data.shards],
        files=[(name, content, (run / name).exists()) for name, content in _FILES],
    )
    write_atomic(run / REPORT_NAME, page)
    return run / REPORT_NAME


def _shard_folder(location: Location) -> ShardFolder:
    """Describe a folder of shards. A URL is not opened: a run may come from a stranger, who would choose the server."""
    try:
        folder = open_location(location)
        manifest = read_manifest(folder.path) if isinstance(folder, LocalFolder) else None
    except (UserError, RunFailed):
        manifest = None
    return ShardFolder(shown(location), display_name(manifest) if manifest else "", manifest)
