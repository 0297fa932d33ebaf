"""The reporting guidelines TRIPOD+AI and CLAIM: each item with what this run knows of it, for the authors of a paper.

TRIPOD+AI: Collins et al., BMJ 2024;385:e078378. CLAIM: Tejani et al., Radiology: Artificial Intelligence 2024;6(4):
e240300. The topics are in Sternum's words; the papers have the items themselves.
"""

from typing import Final

from evaluation.report.html.blocks import Block, Paragraph, Section
from evaluation.report.html.known_facts import Fact, known_facts
from evaluation.report.html.run_facts import RunFacts
from evaluation.report.tables import Table

_UNKNOWN: Final = "not available"

_TRIPOD_AI: Final[tuple[tuple[str, str, Fact | None], ...]] = (
    ("1", "title: model, population, outcome", None),
    ("2", "abstract", None),
    ("3a", "medical context, existing models", None),
    ("3b", "intended population, purpose and users", None),
    ("3c", "known inequalities in health", None),
    ("4", "objectives", "goal"),
    ("5a", "sources of data for development and evaluation", "data"),
    ("5b", "dates of data collection", None),
    ("6a", "setting and sites", None),
    ("6b", "eligibility of participants", "exclusions"),
    ("6c", "treatments", None),
    ("7", "preparation of data", "preparation"),
    ("8a", "outcome: definition", "outcome"),
    ("8b", "outcome: who assessed it", None),
    ("8c", "outcome: blinding", None),
    ("9a", "predictors: choice", "input"),
    ("9b", "predictors: definition", "input"),
    ("9c", "predictors: who assessed them", None),
    ("10", "sample size", "sizes"),
    ("11", "missing data", "exclusions"),
    ("12a", "use of the data, partition", "partition"),
    ("12b", "handling of predictors", "preparation"),
    ("12c", "type of model, building, internal validation", "model"),
    ("12d", "differences between clusters", "external"),
    ("12e", "measures of performance", "measures"),
    ("12f", "updating of the model", None),
    ("12g", "how predictions are calculated", "predictions"),
    ("13", "class imbalance", "balance"),
    ("14", "fairness", "subgroups"),
    ("15", "output and thresholds", "threshold"),
    ("16", "differences between development and evaluation data", "shift"),
    ("17", "ethical approval", None),
    ("18a", "funding", None),
    ("18b", "conflicts of interest", None),
    ("18c", "protocol", None),
    ("18d", "registration", None),
    ("18e", "availability of data", None),
    ("18f", "availability of code", "software"),
    ("19", "involvement of patients and the public", None),
    ("20a", "flow of participants", "sizes"),
    ("20b", "characteristics of participants", "subgroups"),
    ("20c", "comparison with the development data", "shift"),
    ("21", "participants and outcomes in each analysis", "sizes"),
    ("22", "full specification of the model", "configuration"),
    ("23a", "performance with intervals, also in subgroups", "performance"),
    ("23b", "performance across clusters", "external"),
    ("24", "results of updating", None),
    ("25", "interpretation", None),
    ("26", "limitations", "limits"),
    ("27a", "use: poor or missing input", None),
    ("27b", "use: interaction and expertise of users", None),
    ("27c", "next steps", None),
)

_CLAIM: Final[tuple[tuple[str, str, Fact | None], ...]] = (
    ("1", "title or abstract names the technology", "model"),
    ("2", "abstract", None),
    ("3", "background and intended use", None),
    ("4", "aims and hypotheses", "goal"),
    ("5", "prospective or retrospective", None),
    ("6", "goal of the study", "goal"),
    ("7", "sources of data", "data"),
    ("8", "inclusion and exclusion", "exclusions"),
    ("9", "preprocessing", "preparation"),
    ("10", "choice of subsets", "subsets"),
    ("11", "de-identification", None),
    ("12", "missing data", "exclusions"),
    ("13", "acquisition of images", None),
    ("14", "reference standard: method", "outcome"),
    ("15", "reference standard: reason for it", None),
    ("16", "reference standard: source of annotations", None),
    ("17", "annotation of the test set", None),
    ("18", "variability of raters", None),
    ("19", "assignment to partitions", "partition"),
    ("20", "level at which partitions are disjoint", "disjoint"),
    ("21", "intended sample size", None),
    ("22", "model in detail", "model"),
    ("23", "software", "software"),
    ("24", "initial parameters", "initialization"),
    ("25", "training in detail", "training"),
    ("26", "choice of the final model", "selection"),
    ("27", "ensembles", "ensembles"),
    ("28", "measures of performance", "measures"),
    ("29", "significance and uncertainty", "uncertainty"),
    ("30", "robustness and sensitivity", "robustness"),
    ("31", "explanations", "explanations"),
    ("32", "evaluation on internal data", "performance"),
    ("33", "evaluation on external data", "external"),
    ("34", "registration of a clinical trial", None),
    ("35", "patients included and excluded", "sizes"),
    ("36", "demographic and clinical characteristics", "subgroups"),
    ("37", "performance on each partition", "performance"),
    ("38", "diagnostic performance and its precision", "performance"),
    ("39", "analysis of failures", "failures"),
    ("40", "limitations", "limits"),
    ("41", "implications for practice", None),
    ("42", "protocol or further technical details", "configuration"),
    ("43", "availability of software, model and data", "software"),
    ("44", "funding", None),
)


def checklists_section(facts: RunFacts) -> Section:
    """Return both checklists."""
    known = known_facts(facts)
    blocks: list[Block] = [
        Paragraph(
            "What this run knows of each item, for the authors of a paper. Everything else is theirs to write: what is "
            "not available here was not recorded by Sternum."
        )
    ]
    for name, items in (("TRIPOD+AI (2024)", _TRIPOD_AI), ("CLAIM (2024 update)", _CLAIM)):
        cells: list[tuple[str, ...]] = [
            (number, topic, known.get(fact, _UNKNOWN) if fact else _UNKNOWN) for number, topic, fact in items
        ]
        count = sum(text != _UNKNOWN for *_, text in cells)
        blocks.append(
            Table(
                f"{name}: {count} of {len(cells)} items have facts in this run",
                ("item", "topic", "what this run knows"),
                cells,
                text_columns=3,
            )
        )
    return Section("checklists", "Reporting: TRIPOD+AI and CLAIM", blocks)
