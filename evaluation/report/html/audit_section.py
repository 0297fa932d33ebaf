"""The section on what the audit and the probe found out about shared patients and images."""

from pathlib import Path

from evaluation.report.html.blocks import Block, Missing, Paragraph, Section
from evaluation.report.tables import Table
from evaluation.results.datasets import Dataset
from evaluation.results.results import Results
from infra.storage.json_files import BadJson, read_json
from sharding.auditing.findings import SPREADS, Audit, ImageGroup


def audit_section(results: Results) -> Section:
    """Return what pretraining saw of the test images, and the findings of the audit that the probe was given."""
    blocks: list[Block] = [
        Table(
            "Test images and patients that pretraining saw, by their names and by their pictures. Groups: patients who "
            "share a near-identical image stay on one side of a split and are resampled as one",
            ("set", "preset", "test images", "seen", "test patients", "seen", "groups", "compared"),
            [_overlap_cells(dataset) for dataset in results.datasets],
        )
    ]
    audited = results.config.get("exclude")
    if not audited:
        blocks.append(
            Missing(
                "The probe was given no audit, so copies within the sets were not left out.",
                "sternum audit FOLDER ... --out=audit; sternum probe ... --exclude=audit/audit.json",
            )
        )
    else:
        blocks += _findings(Path(str(audited)))
    return Section("audit", "Audit: shared patients and images", blocks)


def _overlap_cells(dataset: Dataset) -> tuple[str, ...]:
    images, patients = (
        "unknown" if count is None else str(count) for count in (dataset.pretrained_images, dataset.pretrained_patients)
    )
    compared = {True: "names and pictures", False: "names", None: ""}[dataset.pictures_compared]
    groups = "" if dataset.test.groups is None else str(dataset.test.groups)
    test = dataset.test
    return (dataset.label, dataset.preset, str(test.images), images, str(test.patients), patients, groups, compared)


def _findings(path: Path) -> list[Block]:
    try:
        audit = read_json(path, Audit)
    except (FileNotFoundError, BadJson) as error:
        reason = "it is not on this machine" if isinstance(error, FileNotFoundError) else str(error)
        return [Missing(f"The audit {path}, by which the probe left out copies, cannot be shown: {reason}.")]
    shared = [sum(patient.spread == spread for patient in audit.shared_patients) for spread in SPREADS[1:]]
    table = Table(
        f"Findings of {path}, by which the probe left out copies",
        ("found", *SPREADS),
        [
            ("shared patients", "", *map(str, shared)),
            ("groups of identical images", *_spreads(audit.identical)),
            ("groups of near-identical images", *_spreads(audit.near_identical)),
        ],
        text_columns=1,
    )
    exclusive = f"Patients with images of labels that exclude each other: {len(audit.two_class_patients)}."
    return [table, Paragraph(exclusive)]


def _spreads(groups: list[ImageGroup]) -> list[str]:
    return [str(sum(group.spread == spread for group in groups)) for spread in SPREADS]
