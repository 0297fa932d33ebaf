"""What a run knows of the items of reporting guidelines, one sentence each; what it does not know is left out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from evaluation.report.html.run_facts import Pretraining, RunFacts
from evaluation.results.datasets import Dataset
from evaluation.results.fault_records import FAULTS
from evaluation.results.picture_records import ATTENTION, FOLDER
from evaluation.results.results import Results
from evaluation.results.rows import last_checkpoint

Fact = Literal[
    "balance", "configuration", "data", "disjoint", "ensembles", "exclusions", "explanations", "external", "failures",
    "goal", "initialization", "input", "limits", "measures", "model", "outcome", "partition", "performance",
    "predictions", "preparation", "robustness", "selection", "shift", "sizes", "software", "subgroups", "subsets",
    "threshold", "training", "uncertainty",
]  # fmt: skip


def known_facts(facts: RunFacts) -> Mapping[Fact, str]:
    """Return the facts that have a sentence."""
    known: dict[Fact, str] = {"software": "Sternum, open source under Apache-2.0; versions under Configuration"}
    if facts.pretraining:
        probed = facts.results.run if facts.results else None
        size_px = probed.probed_px if probed else facts.pretraining.config.views.size_px
        known |= _of_pretraining(facts.pretraining)
        known["input"] = f"one gray radiograph, {size_px} x {size_px} px; nothing else"
    if facts.results:
        if (facts.folder / FOLDER / ATTENTION).exists():
            known["explanations"] = "attention maps with two checks (Where the network looks)"
        if (facts.folder / FOLDER / FAULTS).exists():
            known["failures"] = "the most confident faults, and error rates in groups (What it gets wrong, Subgroups)"
        known |= {**_of_datasets(facts.results.datasets), **_of_scores(facts.results)}
        if facts.results.run is None:
            known["data"] = f"probed: {', '.join(dict.fromkeys(each.task_label for each in facts.results.datasets))}"
        known["selection"] = (
            f"{facts.selection.chosen}, chosen without labels: {facts.selection.why}"
            if facts.selection
            else f"{facts.results.judged}, not the one with the best test score"
        )
    return {name: text for name, text in known.items() if text}


def _of_pretraining(pretraining: Pretraining) -> dict[Fact, str]:
    config = pretraining.config
    sets = ", ".join(folder.label or folder.folder for folder in pretraining.data)
    start = f"weights of {config.model.init}" if config.model.init else f"random weights of seed {config.seed}"
    return {
        "goal": "pretraining of a radiograph encoder without labels, judged by simple classifiers on frozen features",
        "data": f"pretraining: {sets}",
        "preparation": "8-bit gray, scaled, normalized by the pixel mean and deviation of the training set (Data)",
        "subsets": f"{config.data.fraction_percent} % of the patients, "
        f"{'splits ' + ', '.join(config.data.splits) if config.data.splits else 'all splits'}",
        "model": f"{config.model.backbone} with a projection head, contrastive (NT-Xent); logistic regression on its "
        "frozen features",
        "initialization": start,
        "training": f"{config.optim.name}, learning rate {config.optim.learning_rate:g}, "
        f"{config.train.epochs} epochs, batch {config.data.global_batch}, temperature {config.loss.temperature:g}",
        "configuration": "the whole configuration is under Configuration and hashes",
    }


def _of_datasets(datasets: Sequence[Dataset]) -> dict[Fact, str]:
    """Return the facts about what was tested."""
    fitted = {each.fitted_on.label: None for each in datasets if each.fitted_on}
    tested = {each.label: None for each in datasets if each.fitted_on}
    crossed = any(each.rounds > 1 for each in datasets)
    asked = dict.fromkeys(f"{each.positive} against {each.negative}" for each in datasets)
    sizes = (
        f"{each.label}: {each.test.images} test images of {each.test.patients} patients, {each.test.positive} positive"
        for each in datasets
    )
    return {
        "outcome": f"{'; '.join(asked)}, as the labels of the set say",
        "sizes": _joined(sizes),
        "exclusions": _joined(_excluded(each) for each in datasets),
        "partition": _joined(f"{each.label}: {each.split} split" for each in datasets),
        "disjoint": "patients; the preset rigorous also keeps near-identical images in one part",
        "balance": _joined(_balance(each) for each in datasets),
        "external": f"fitted to {', '.join(fitted)}, tested on {', '.join(tested)}" if fitted else "",
        "ensembles": f"none{'; cross-validation tests one classifier in each round' * crossed}",
    }


def _of_scores(results: Results) -> dict[Fact, str]:
    """Return the facts about what was measured."""
    has_intervals = any(row.scores.auc.method for row in results.rows)
    controls = "untrained network, raw pixels, image border, attributes and shuffled labels as controls (Scores)"
    thresholds = {
        "a threshold chosen on validation" if protocol.get("chooses_threshold") else "the threshold 0.5": None
        for protocol in results.protocol.values()
    }
    return {
        "measures": "AUC, average precision, accuracy, sensitivity, specificity, F1; Brier score and decision curve",
        "uncertainty": "95 % intervals over patients; Holm's adjustment of p-values (Scores)" * has_intervals,
        "threshold": f"a probability; decisions at {' or '.join(thresholds)}",
        "predictions": f"{results.predictions.name} has every test image" if results.predictions else "",
        "performance": _performance(results),
        "subgroups": "scores by subgroup (Subgroups)" * any(row.subgroups for row in results.rows),
        "shift": "controls tell development from test images (Scores)" * bool(results.shifts),
        "robustness": controls * any(row.kind == "untrained" for row in results.rows),
        "limits": "the notes under In short and Scores",
    }


def _joined(sentences: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, sentences)))


def _balance(dataset: Dataset) -> str:
    if dataset.balance != "none":
        return f"{dataset.label}: balanced by {dataset.balance}"
    return f"{dataset.label}: as drawn, {dataset.test.positive} of {dataset.test.images} positive"


def _excluded(dataset: Dataset) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in dataset.excluded.items() if count)
    return f"{dataset.label}: left out {counts}" if counts else f"{dataset.label}: nothing left out"


def _performance(results: Results) -> str:
    found = []
    for dataset in results.datasets:
        if last := last_checkpoint(results.rows_of(dataset)):
            found.append(f"{dataset.label}, {dataset.preset}: AUC {last.scores.auc.value:.3f}")
    return "; ".join(found) + " (intervals under Scores)" if found else ""
