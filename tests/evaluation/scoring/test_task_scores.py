import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from evaluation.scoring.intervals import estimate
from evaluation.scoring.scores import Predictions
from evaluation.scoring.task_scores import TaskPredictions, confusion, mean_scores, resampled_means
from infra.rng import uniform

PATIENTS = 40


def _label(seed: int, known: float, shift: float) -> Predictions:
    """Return the predictions for a label that is known of some of the 120 images of 40 patients."""
    random = np.random.default_rng(seed)
    patients = np.repeat(np.arange(PATIENTS), 3)
    classes = (random.random(len(patients)) < 0.4).astype(np.int64)
    probabilities = np.round(1 / (1 + np.exp(-random.normal(shift * (classes - 0.5)))), 2)  # with ties
    inside = random.random(len(patients)) < known
    whole = Predictions(classes, probabilities, probabilities > 0.5, patients, np.zeros(len(patients), np.int64))
    return whole.of(inside)


def test_means_and_their_intervals_are_those_of_scikit_learn_on_resampled_patients() -> None:
    labels = [_label(1, 1.0, 2.0), _label(2, 0.7, 1.0), _label(3, 0.3, 0.5)]
    task = TaskPredictions(labels, exclusive=False)
    scorers = {"auc": metrics.roc_auc_score, "ap": metrics.average_precision_score}
    values = mean_scores(task)
    resampled = resampled_means(task, resamples=25, seed=5)
    draws = (uniform(5, "probe-bootstrap", np.arange(25, dtype=np.uint64), 0, PATIENTS) * PATIENTS).astype(int)
    for name, scorer in scorers.items():
        assert values[name] == pytest.approx(np.mean([scorer(item.classes, item.probabilities) for item in labels]))
        expected = []
        for drawn in draws:
            of_labels = []
            for item in labels:
                rows = np.concatenate([np.flatnonzero(item.patients == patient) for patient in drawn])
                of_labels.append(scorer(item.classes[rows], item.probabilities[rows]))
            expected.append(np.mean(of_labels))
        assert resampled[name] == pytest.approx(np.array(expected))
        # The interval: Student's t on the logit scale, for the smallest class of any label, counted in patients.
        fewest = min(len(set(item.patients[item.classes == code])) for item in labels for code in (0, 1))
        found = estimate(values[name], resampled[name], task.evidence)
        logits = np.log(values[name] / (1 - values[name]))
        error = np.std(expected, ddof=1) * np.sqrt(fewest / (fewest - 1)) / (values[name] * (1 - values[name]))
        low, high = logits + stats.t.ppf([0.025, 0.975], fewest - 1) * error
        assert (found.low, found.high) == pytest.approx((1 / (1 + np.exp(-low)), 1 / (1 + np.exp(-high))))


def test_balanced_accuracy_and_confusion_of_classes_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    true = random.integers(0, 4, 90)
    probabilities = random.random((3, 90)) + 0.4 * (true == np.arange(3)[:, None])
    patients, parts = np.arange(90) // 2, np.zeros(90, np.int64)
    labels = [
        Predictions((true == code).astype(np.int64), of_class, of_class > 0.5, patients, parts)
        for code, of_class in enumerate(probabilities)
    ]
    task = TaskPredictions(labels, exclusive=True)
    scored = true < 3  # a class that is left out counts as "other" in each question, and takes no part here
    assigned = probabilities.argmax(axis=0)
    expected = metrics.confusion_matrix(true[scored], assigned[scored])
    assert confusion(task) == expected.tolist()
    accuracy = metrics.balanced_accuracy_score(true[scored], assigned[scored])
    assert mean_scores(task)["balanced_accuracy"] == pytest.approx(accuracy)
    resampled = resampled_means(task, resamples=100, seed=0)["balanced_accuracy"]
    assert np.std(resampled) == pytest.approx(np.sqrt(0.25 / scored.sum()), rel=0.8)


def test_a_resample_that_lacks_a_class_of_a_label_has_no_mean() -> None:
    rare = _label(1, 1.0, 1.0)
    rare = Predictions((np.arange(120) == 0).astype(np.int64), *list(vars(rare).values())[1:])
    means = resampled_means(TaskPredictions([_label(2, 1.0, 1.0), rare], exclusive=False), resamples=50, seed=0)
    assert 5 < np.isnan(means["auc"]).sum() < 40  # the patient is missing in 1 / e of the resamples
