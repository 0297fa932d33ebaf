"""The model card of an export: what the network is, how others load it, and what is known about its quality."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import jinja2
import yaml

from evaluation.report.findings import preset_sections
from evaluation.report.score_table import score_rows, score_tables
from evaluation.report.shard_folders import ShardFolder, are_of_run
from evaluation.report.tables import Table, escape_markdown, markdown
from evaluation.report.task_tables import score_tables_of
from evaluation.results.notes import describe, notes_on
from evaluation.results.results import Results
from ssl_core.checkpoints.checkpoint import Checkpoint
from ssl_core.checkpoints.export.folder import Contents, Preparation
from ssl_core.checkpoints.export.timm_names import SUBFOLDER
from ssl_core.checkpoints.export.write import Forms
from ssl_core.model.architectures import TIMM, Network
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.views.parameters import MOST_SHRINK

_FITS: Final = {
    "pad": "the longer side fits, and the border of the image is repeated beside it",
    "squash": "each side is scaled alone",
    "square": "the longer side is cut about the center",
}
_UNKNOWN: Final = ("unknown", "unknown")
_CAPTION: Final = "Test part, in percent."


@dataclass(frozen=True)
class _Torchvision:
    """How torchvision builds the network: the call, and the layers that differ."""

    call: str
    layers: dict[str, str]


@dataclass(frozen=True)
class _Section:
    """The scores of the exported checkpoint by one preset."""

    title: str
    findings: list[str]
    tables: list[Table]


def model_card(
    config: PretrainConfig,
    checkpoint: Checkpoint,
    contents: Contents,
    preparation: Preparation,
    forms: Forms,
    data: Sequence[ShardFolder],
    results: Results | None,
) -> str:
    """Return the text of an export's README.md, in Markdown with the head that Hugging Face reads.

    Args:
        config: configuration of the run
        checkpoint: the exported checkpoint
        contents: what the export holds
        preparation: how an image becomes the input
        forms: the forms in which the weights were written
        data: the folders that the run was pretrained on
        results: the scores of the run, if it was probed
    """
    scores = of_checkpoint(results, checkpoint.step) if results else None
    first = next(iter(preparation.packing), None)
    return _template("card.md.j2").render(
        config=config,
        contents=contents,
        state=checkpoint.state,
        preparation=preparation,
        prepare=prepare_code(preparation),
        fit_words=_FITS[preparation.fit],
        packing=first,
        packed_otherwise=[each.set for each in preparation.packing if first and each != replace(first, set=each.set)],
        forms=forms,
        timm_path=f"{{folder}}/{SUBFOLDER}" if forms.timm == Path(SUBFOLDER) else "{folder}",
        torchvision=None if forms.network.name.startswith(TIMM) else _torchvision(forms.network, preparation),
        data=_data_table(data, checkpoint.state.data_identity),
        recipe=yaml.safe_dump(checkpoint.state.config, sort_keys=True).replace("`", "'"),  # ends no code block
        scores=_sections(scores) if scores else [],
        notes=notes_on(scores) if scores else [],
        probed=scores.datasets if scores else [],
        describe=describe,
        markdown=markdown,
    )


def prepare_code(preparation: Preparation) -> str:
    """Return Python that makes an image file into the input with numpy and Pillow alone, as a function `prepare`."""
    packing = next(iter(preparation.packing), None)
    return _template("card_prepare.py.j2").render(preparation=preparation, packing=packing, most_shrink=MOST_SHRINK)


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown and Python; the filter `md` escapes what others wrote
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = escape_markdown
    return environment.get_template(name)


def of_checkpoint(results: Results, step: int) -> Results | None:
    """Return the results with one checkpoint and the controls; None if that checkpoint was not probed."""
    last = max((row.step or 0 for row in results.rows if row.kind == "checkpoint"), default=0)
    left_out = {"finetuned"} if step != last else set()

    def is_kept(kind: str, row_step: int | None) -> bool:
        return row_step == step if kind == "checkpoint" else kind not in left_out

    kept = replace(
        results,
        rows=[row for row in results.rows if is_kept(row.kind, row.step)],
        tasks=[replace(task, rows=[row for row in task.rows if is_kept(row.kind, row.step)]) for task in results.tasks],
    )
    return kept if any(row.kind == "checkpoint" for row in kept.rows) else None


def _sections(results: Results) -> list[_Section]:
    sections = []
    presets = dict.fromkeys(dataset.preset for dataset in results.datasets)
    for preset, section in zip(presets, preset_sections(results), strict=True):
        single = [dataset for dataset in results.single if dataset.preset == preset]
        rows = [row for dataset in single for row in score_rows(results, dataset, results.rows_of(dataset))]
        tables = score_tables(_CAPTION, rows)
        tables += [table for task in results.tasks if task.preset == preset for table in score_tables_of(results, task)]
        sections.append(_Section(section.title, section.findings, tables))
    return sections


def _torchvision(network: Network, preparation: Preparation) -> _Torchvision:
    size = f", image_size={preparation.size_px}" if network.family == "vision_transformer" else ""
    layers = {}
    if preparation.channels == 1:
        layers = {stem: f"torch.nn.{network.module.get_submodule(stem)}" for stem in network.stems}
    layers |= dict.fromkeys(network.classifiers, "torch.nn.Identity()")
    return _Torchvision(f"{network.name}(weights=None{size})", layers)


def _data_table(data: Sequence[ShardFolder], identity: str) -> Table:
    is_same = are_of_run(data, identity)
    cells: list[tuple[str, ...]] = []
    for number, folder in enumerate(data, start=1):
        manifest, used = folder.manifest, folder.used
        if manifest is None or not is_same:
            why = "not on the machine that wrote this card" if is_same else "not as it was when the run read it"
            cells.append((f"set {number}, {why}", "", *_UNKNOWN, "", "", ""))
            continue
        totals = (str(manifest.samples), str(manifest.patients), str(len(manifest.rejected)))
        counts = (str(used.images), str(used.patients)) if used else _UNKNOWN
        cells.append((folder.label, manifest.identity, *counts, *totals))
    header = ("set", "identity (SHA-256)", "images used", "patients used", "images in all", "patients in all")
    return Table("", (*header, "files rejected"), cells, text_columns=2)
