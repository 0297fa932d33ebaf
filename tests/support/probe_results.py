"""Made-up results of a probe, with plausible figures."""

from collections.abc import Sequence
from dataclasses import replace

from evaluation.results.backbones import Run
from evaluation.results.datasets import Dataset, PartSize
from evaluation.results.notes import notes_on
from evaluation.results.paper import DISEASED
from evaluation.results.results import VERSION, Results
from evaluation.results.rows import Comparison, FewLabels, ProbeKind, ProbeResult, Shift, TriedC
from evaluation.results.scores import Bin, Calibration, DecisionCurve, Difference, Estimate, Gap, Scores, Subgroup
from evaluation.results.selection import CheckpointSelection, MeasureVerdict
from evaluation.results.tasks import BUILT_IN
from evaluation.selection.label_free import MEASURES

EPOCHS = (4, 8, 12, 16, 20, 24)


def made_dataset(preset: str, **changes: object) -> Dataset:
    whole = Dataset(
        label="cell",
        preset=preset,
        name="cell",
        folder="shards/cell",
        identity="0123456789abcdef" * 4,
        simulated=False,
        positive="PNEUMONIA",
        negative="NORMAL",
        balance="none",
        split="official",
        rounds=1,
        development=PartSize(5232, 2790, 3883, 1349),
        test=PartSize(624, 427, 390, 234),
        excluded={"label uncertain": 0, "neither label": 0},
        pretrained_images=0,
        pretrained_patients=0,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def in_paper_dataset(name: str) -> Dataset:
    """A dataset whose task, split and share of diseased test images are those of the paper."""
    task = BUILT_IN[name][0]
    [question] = task.questions
    positive = round(1000 * sum(DISEASED[name]) / 2)
    return made_dataset(
        "gazda2021",
        label=name,
        name=name,
        positive=question.positive,
        negative=question.negative_name,
        balance=task.balance,
        test=PartSize(1000, 900, positive, 1000 - positive),
    )


def around(value: float, half: float = 0.02) -> Estimate:
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


def made_scores(auc: float) -> Scores:
    values = (auc - 0.10, auc, min(1.0, auc + 0.02), auc - 0.3, auc - 0.06, auc - 0.18, min(1.0, auc + 0.01))
    return Scores(*(around(value) for value in values))


def made_row(dataset: Dataset, features: str, kind: ProbeKind, auc: float, **changes: object) -> ProbeResult:
    rigorous = dataset.preset == "rigorous"
    plain = ProbeResult(
        dataset=dataset.label,
        preset=dataset.preset,
        features=features,
        kind=kind,
        epoch=None,
        step=None,
        size=512,
        c=[0.001] if rigorous else [1.0],
        at_edge=0 if rigorous else 1,
        threshold=[0.5],
        validation_auc=min(1.0, auc + 0.02),
        validation=around(min(1.0, auc + 0.02), 0.01),
        scores=made_scores(auc),
        knn_auc=auc - 0.05,
        fits=36 if rigorous else 49,
        unconverged=0 if rigorous else 40,
        calibration=made_calibration() if rigorous else None,
        c_path=made_c_path() if rigorous else [],
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def made_calibration() -> Calibration:
    predicted = [0.05 + 0.1 * number for number in range(10)]
    return Calibration(
        brier=0.112,
        brier_recalibrated=0.081,
        brier_prevalence=0.234,
        bins=[Bin(value, value**2, 62) for value in predicted],
        bins_recalibrated=[Bin(value, value**1.1, 62) for value in predicted],
        decisions=DecisionCurve([0.1, 0.5, 0.9], [0.6, 0.5, 0.3], [0.58, 0.25, -2.7]),
    )


def made_rows(dataset: Dataset) -> list[ProbeResult]:
    rows = [
        made_row(dataset, "32 x 32 raw pixels", "pixels", 0.907),
        made_row(dataset, "border of the image", "border", 0.774),
        made_row(dataset, "view, sex and age", "attributes", 0.613),
        made_row(dataset, "untrained backbone", "untrained", 0.948),
    ]
    for number, epoch in enumerate(EPOCHS):
        row = made_row(dataset, f"epoch {epoch}", "checkpoint", 0.946 + 0.0034 * number)
        rows.append(replace(row, epoch=float(epoch), step=50 * epoch))
    if dataset.preset == "rigorous":
        rows[-1] = replace(
            rows[-1], subgroups=made_subgroups(), gaps=[Gap("sex", "M", "F", Difference(0.03, -0.01, 0.07))]
        )
        name = "epoch 24, labels shuffled over all patients"
        shuffled = made_row(dataset, name, "shuffled_over_all", 0.512, calibration=None)
        rows.append(replace(shuffled, scores=replace(shuffled.scores, auc=Estimate(0.512, 0.441, 0.583))))
    return rows


def made_subgroups() -> list[Subgroup]:
    return [
        Subgroup("sex", "F", 290, 200, 180, around(0.95), around(0.97), around(0.70)),
        Subgroup("sex", "M", 310, 210, 200, around(0.98), around(0.98), around(0.74)),
        Subgroup("sex", "unknown", 24, 17, 10, None, None, None),
    ]


def made_results(datasets: Sequence[Dataset] | None = None, fraction_percent: int = 100) -> Results:
    """Return results of both presets on Cell, or of the given datasets, with the details of `rigorous`."""
    datasets = [made_dataset("gazda2021"), made_dataset("rigorous")] if datasets is None else datasets
    results = Results(
        version=VERSION,
        sternum="0.1.0",
        command="sternum probe runs/made --data.shards=[shards/cell]",
        run=Run("resnet18", 128, 256, fraction_percent, 24.0, 0),
        config={"seed": 0},
        protocol={dataset.preset: {"max_iterations": 100, "standardize": False} for dataset in datasets},
        datasets=list(datasets),
        rows=[row for dataset in datasets for row in made_rows(dataset)],
        comparisons=[
            item for dataset in datasets if dataset.preset == "rigorous" for item in made_comparisons(dataset)
        ],
        few_labels=[item for dataset in datasets if dataset.preset == "rigorous" for item in made_few_labels(dataset)],
        timing={"features_s": 60.0, "search_s": 90.0},
        notes=[],
        shifts=[item for dataset in datasets if dataset.preset == "rigorous" for item in made_shifts(dataset)],
    )
    return replace(results, notes=notes_on(results))


def made_comparisons(dataset: Dataset) -> list[Comparison]:
    differences = {  # the last one would be called shown without Holm's adjustment
        "32 x 32 raw pixels": (Difference(0.056, 0.034, 0.080, "t, 234 patients", 0.0001), 0.0003),
        "border of the image": (Difference(0.189, 0.011, 0.367, "t, 234 patients", 0.02), 0.04),
        "untrained backbone": (Difference(0.015, 0.001, 0.029, "t, 234 patients", 0.04), 0.06),
    }
    return [
        Comparison(dataset.label, dataset.preset, "epoch 24", other, difference, p_holm)
        for other, (difference, p_holm) in differences.items()
    ]


def made_shifts(dataset: Dataset) -> list[Shift]:
    return [
        Shift(dataset.label, dataset.preset, "32 x 32 raw pixels", group, 1349, 234, around(auc), around(null))
        for group, auc, null in (("NORMAL", 0.931, 0.537), ("PNEUMONIA", 0.49, 0.48))
    ]


def made_c_path() -> list[TriedC]:
    return [TriedC(c, auc, 0.0008, auc - c / 10) for c, auc in ((0.001, 0.9818), (0.01, 0.9883), (0.1, 0.9883))]


def made_few_labels(dataset: Dataset) -> list[FewLabels]:
    return [
        FewLabels(dataset.label, dataset.preset, features, percent, 52.32 * percent, [best - gap, best, best - gap / 3])
        for features, best in (("epoch 24", 0.94), ("untrained backbone", 0.90))
        for percent, gap in ((1, 0.12), (5, 0.06), (10, 0.03), (25, 0.01))
    ]


def made_selection() -> CheckpointSelection:
    measures = {f"epoch {epoch}": dict.fromkeys(MEASURES, 1.0 + epoch / 3) for epoch in EPOCHS}
    judged = [
        MeasureVerdict(
            "cell", "rigorous", "LiDAR", "epoch 20", Estimate(0.83, 0.31, 0.94), Estimate(0.002, 0.0, 0.011)
        ),
        MeasureVerdict("cell", "rigorous", "random", "-", None, Estimate(0.009, 0.004, 0.015)),
    ]
    why = "its LiDAR of 7.7 is the highest of 6 checkpoints"
    return CheckpointSelection("512 held-out images of 498 patients", 512, measures, "epoch 20", why, judged)
