"""Tables of a comparison of recipes."""

from collections.abc import Iterator

from evaluation.comparison.records import RecipeComparison, RecipeDifference, RecipeScore
from evaluation.report.tables import Table, interval, p_value, percent, point_interval, points
from infra.words import counted


def recipe_tables(comparison: RecipeComparison) -> list[Table]:
    """Return the table of the recipes' AUCs, then that of the differences between them."""
    return [_scores(comparison), _differences(comparison)]


def differences_table(comparison: RecipeComparison) -> Table:
    """Return one row for each pair of recipes with everything that is known of it, for a spreadsheet."""
    scores = {(item.dataset, item.recipe): item for item in comparison.scores}
    rows = []
    for item in comparison.differences:
        first, second = scores[item.dataset, item.recipe], scores[item.dataset, item.other]
        rows.append((item.dataset, item.preset, *_plain(first), *_plain(second), *_numbers(item)))
    of_recipe = ("runs", "AUC", "SD")
    return Table(
        "",
        (
            *("set", "preset", "recipe", *(f"recipe {name}" for name in of_recipe)),
            *("other", *(f"other {name}" for name in of_recipe)),
            *("difference", "low", "high", "p", "p Holm", "about", "verdict"),
        ),
        rows,
    )


def _plain(score: RecipeScore) -> tuple[str, ...]:
    return score.recipe, str(len(score.aucs)), repr(score.auc.value), "" if score.sd is None else repr(score.sd)


def _numbers(item: RecipeDifference) -> tuple[str, ...]:
    estimate = item.difference
    values = (estimate.value, estimate.low, estimate.high, item.difference.p, item.p_holm)
    return (*("" if value is None else repr(value) for value in values), item.about, item.verdict)


def _scores(comparison: RecipeComparison) -> Table:
    return Table(
        "AUC on the test part in percent, mean over the runs of each recipe",
        ("set", "recipe", "runs", "AUC", "95 %", "SD", "each run"),
        [
            (
                item.dataset,
                item.recipe,
                str(len(item.aucs)),
                percent(item.auc.value),
                interval(item.auc),
                "" if item.sd is None else percent(item.sd),
                ", ".join(map(percent, item.aucs)),
            )
            for item in comparison.scores
        ],
        text_columns=2,
        notes=list(_score_notes(comparison)),
    )


def _score_notes(comparison: RecipeComparison) -> Iterator[str]:
    preset = f", by the preset {comparison.scores[0].preset}" if comparison.scores[0].preset else ""
    for name, count in comparison.images.items():
        yield f"{f'{name}: ' if name else ''}{count} images of {comparison.patients[name]} patients{preset}."
    probed = {item.recipe: ", ".join(dict.fromkeys(filter(None, item.features))) for item in comparison.scores}
    shown = [f"{recipe}: {features}" for recipe, features in probed.items() if features]
    if shown:
        yield f"The last checkpoint of each run, or the first of backbones without one: {'; '.join(shown)}."
    yield "With several runs the interval is over patients and seeds, with one run over patients alone."


def _differences(comparison: RecipeComparison) -> Table:
    return Table(
        "AUC of one recipe minus that of another on the same images, in points",
        ("set", "recipe", "minus", "difference", "95 %", "p", "p (Holm)", "about", "verdict"),
        [
            (
                item.dataset,
                item.recipe,
                item.other,
                points(item.difference.value),
                point_interval(item.difference),
                p_value(item.difference.p),
                p_value(item.p_holm),
                item.about,
                item.verdict,
            )
            for item in comparison.differences
        ],
        text_columns=3,
        notes=list(_difference_notes(comparison)),
    )


def _difference_notes(comparison: RecipeComparison) -> Iterator[str]:
    count = counted(len(comparison.differences), "difference")
    if any(item.p_holm is not None for item in comparison.differences):
        yield (
            f"Verdicts: Holm's adjustment over the {count} of this table, at 5 %. "
            "Each interval is that of its difference alone."
        )
    if any(item.about == "these weights" for item in comparison.differences):
        yield (
            "These weights: a recipe with one run is one draw. Another seed gives other weights, so the verdict says "
            "nothing about the recipe; give it several runs: NAME=RUN,RUN,RUN."
        )
