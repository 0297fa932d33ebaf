"""The sections on a run itself: curves, data, configuration, files."""

import math
from collections.abc import Iterator
from typing import Final

from evaluation.report.html.blocks import Block, Code, Facts, Heading, Missing, Notes, Paragraph, Picture, Section
from evaluation.report.html.figures import accuracy_picture, auc_picture
from evaluation.report.html.forest_plot import forest_picture
from evaluation.report.html.run_facts import Pretraining, RunFacts
from evaluation.report.html.training_figures import loss_picture, similarity_picture
from evaluation.report.shard_folders import ShardFolder
from evaluation.report.tables import Table
from evaluation.report.task_tables import parts_table
from evaluation.results import paper
from evaluation.results.datasets import Dataset
from evaluation.results.notes import describe_overlap
from evaluation.results.results import Results

# Files and folders of a run, in the order in which a reader needs them.
_FILES: Final = (
    ("config.yaml", "the whole configuration; --config reads it back"),
    ("metrics.jsonl", "loss, speed and learning rate, one JSON line for each logged step"),
    ("hardware.jsonl", "the machines of each start"),
    ("events", "the same as metrics.jsonl for TensorBoard: tensorboard --logdir RUN"),
    ("checkpoints", "weights and state, one folder for each step kept"),
    ("features", "frozen features, named by a hash of weights, images and preprocessing; may be deleted"),
    ("results.json", "every score of this page, in full precision"),
    ("predictions.csv", "every test image with its label and score"),
    ("pictures", "the radiographs, attention maps and embeddings of this page"),
    ("selection.json", "the choice of a checkpoint without labels"),
    ("table3.md", "the paper's Table III next to this run, also as table3.csv and table3.tex"),
)


def curves_section(facts: RunFacts) -> Section:
    """Return the loss over the epochs, and the scores of the checkpoints over theirs."""
    blocks: list[Block] = []
    if facts.pretraining:
        blocks += _training(facts.pretraining)
    if facts.results:
        blocks += _score_curves(facts.results)
    return Section("curves", "Curves", blocks)


def _training(pretraining: Pretraining) -> Iterator[Block]:
    if pretraining.losses:
        chance = math.log(2 * pretraining.config.data.global_batch - 1)
        yield loss_picture(pretraining.losses, chance)
        if similarity := similarity_picture(pretraining.metrics):
            yield similarity
        if pretraining.metrics[-1].get("run/collapsed"):
            yield Notes(
                ["The network has collapsed: it maps all images to nearly the same point (docs/monitoring.md)."]
            )
    elif pretraining.metrics:
        yield Missing("No logged step has a finite loss.")
    else:
        yield Missing("No step has been logged yet.")
    checkpoints = pretraining.checkpoints
    if checkpoints:
        last = f"the last at step {checkpoints[-1].step} (epoch {checkpoints[-1].epoch:.2f})"
        yield Paragraph(f"{len(checkpoints)} checkpoint{'s' * (len(checkpoints) > 1)}, {last}.")
    else:
        yield Missing("No checkpoint has been written yet.")


def _score_curves(results: Results) -> Iterator[Picture]:
    overview = auc_picture if results.run else forest_picture
    for label in dict.fromkeys(dataset.label for dataset in results.single):
        by_preset: dict[str, Dataset] = {each.preset: each for each in results.datasets if each.label == label}
        *_, strictest = by_preset.values()  # presets run from the paper's to the strictest
        yield overview(results, strictest)
        if accuracy := accuracy_picture(results, by_preset.get(paper.PRESET, strictest)):
            yield accuracy


def data_section(facts: RunFacts) -> Section:
    """Return what was trained on and what was tested, with counts and hashes, and the protocol."""
    blocks: list[Block] = []
    if facts.pretraining:
        blocks += [Heading("Pretraining, without labels"), *_shards(facts.pretraining)]
    if facts.results:
        blocks += [Heading("Probed, with labels"), *_probed(facts.results)]
        for preset, protocol in facts.results.protocol.items():
            blocks.append(Heading(f"Protocol of the preset {preset}"))
            blocks.append(Facts([(name.replace("_", " "), str(value)) for name, value in protocol.items()]))
    return Section("data", "Data and protocol", blocks)


def _shards(pretraining: Pretraining) -> Iterator[Block]:
    yield Table(
        "Sets that the run read. Used: by the chosen splits and fraction. Identity: SHA-256 over the packed images",
        ("set", "folder", "identity", "images used", "patients used", "images", "patients", "files rejected", "mean",
         "SD"),
        [_shard_cells(folder) for folder in pretraining.data],
        text_columns=3,
    )  # fmt: skip
    data = pretraining.config.data
    splits = f"splits {', '.join(data.splits)}" if data.splits else "all splits"
    yield Paragraph(f"Selected: {splits}, {data.fraction_percent} % of the patients.", "quiet")


def _shard_cells(folder: ShardFolder) -> tuple[str, ...]:
    manifest, used = folder.manifest, folder.used
    if manifest is None:
        return ("not on this machine", folder.folder, *[""] * 8)
    counts = (str(used.images), str(used.patients)) if used else ("unknown", "unknown")
    totals = (str(manifest.samples), str(manifest.patients), str(len(manifest.rejected)))
    pixels = (f"{manifest.pixel_mean:.4f}", f"{manifest.pixel_std:.4f}")
    return (folder.label, folder.folder, manifest.identity[:16], *counts, *totals, *pixels)


def _probed(results: Results) -> Iterator[Block]:
    for task in results.tasks:
        yield parts_table(results, task)
    for dataset in results.single:
        yield _dataset_table(dataset)


def _dataset_table(dataset: Dataset) -> Table:
    parts = {"development": dataset.development, "test": dataset.test}
    if dataset.rounds > 1:
        parts = {f"tested in turn, in {dataset.rounds} rounds": dataset.test}
    balanced = "" if dataset.balance == "none" else f", balanced by {dataset.balance}"
    left_out = ", ".join(f"{count} {reason}" for reason, count in dataset.excluded.items() if count) or "nothing"
    notes = [f"Left out: {left_out}."]
    if dataset.pretrained_images is not None:
        notes.append(f"The {describe_overlap(dataset)}, without labels.")
    return Table(
        f"{dataset.label}, {dataset.preset}: {dataset.positive} against {dataset.negative}, {dataset.split} "
        f"split{balanced}; {dataset.folder}, identity {dataset.identity[:16]}",
        ("part", "images", "patients", dataset.positive, dataset.negative),
        [
            (title, *(str(count) for count in (part.images, part.patients, part.positive, part.negative)))
            for title, part in parts.items()
        ],
        text_columns=1,
        notes=notes,
    )


def configuration_section(facts: RunFacts) -> Section:
    """Return everything that decides what was computed, and the hashes of what it began with."""
    blocks: list[Block] = []
    results, pretraining = facts.results, facts.pretraining
    if pretraining:
        blocks.append(Facts([*_hashes(pretraining)]))
        blocks.append(Code("config.yaml of the pretraining", pretraining.config_text))
    if results:
        if results.predictions:
            file = results.predictions
            blocks.append(Facts([(file.name, f"{file.rows} lines, SHA-256 {file.sha256}")]))
        if results.command:
            blocks.append(Code(f"The command of the probe, Sternum {results.sternum}", results.command))
    return Section("configuration", "Configuration and hashes", blocks)


def _hashes(pretraining: Pretraining) -> Iterator[tuple[str, str]]:
    yield "seed", str(pretraining.config.seed)
    if pretraining.checkpoints:
        state = pretraining.checkpoints[-1].state
        yield "written by", f"Sternum {state.sternum_version}, torch {state.torch_version}"
        yield "identity of all shards", state.data_identity
        for ancestor in state.ancestors:
            yield "began with", f"{ancestor.weights}, SHA-256 {ancestor.sha256}"


def files_section(facts: RunFacts) -> Section:
    """Return the files of the run, and those that it does not have yet."""
    found = [(name, content, (facts.folder / name).exists()) for name, content in _FILES]
    shown = [(name, content if exists else "not written yet") for name, content, exists in found]
    only = shown if facts.pretraining else [item for item, (_, _, exists) in zip(shown, found, strict=True) if exists]
    return Section("files", "Files", [Paragraph(f"Everything is in {facts.folder.resolve()}:"), Facts(only)])
