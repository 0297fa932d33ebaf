"""Tests of the log of finished fits."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.fitting.fit_log import FitLog, from_text, to_text
from evaluation.fitting.search import FinalFit, FinalResult, Fit, FitResult, FoldFit, FoldResult, SearchProblem
from evaluation.results.classifier import Classifier
from infra.errors import UserError

# Two folds of three images, two tested images, two values of C.
PROBLEM = SearchProblem(
    "x", np.arange(8), np.arange(8) % 2, np.array([0, 0, 0, 1, 1, 1, -1, -1]), False, (0.01, 0.1), 100,
    tests_every_c=True,
)  # fmt: skip
random = np.random.default_rng(0)
FITS: dict[Fit, FitResult] = {
    FoldFit("a", 0): FoldResult(random.random(2), random.random((2, 3)), np.array([True, False])),
    FoldFit("a", 1): FoldResult(random.random(2), random.random((2, 3)), np.array([True, True])),
    FinalFit("a", 0.1): FinalResult(random.random(2), True, random.random(2)),
}


def log_in(folder: Path) -> FitLog:
    return FitLog(folder, {"a": "0" * 64, "b": "1" * 64})


def bits(results: dict[Fit, FitResult]) -> dict[Fit, list[tuple[bytes, str]]]:
    """Return the bits and the type of each value."""
    arrays = {fit: map(np.asarray, asdict(result).values()) for fit, result in results.items()}
    return {fit: [(array.tobytes(), str(array.dtype)) for array in values] for fit, values in arrays.items()}


def test_finished_fits_are_read_back_to_the_last_bit_until_they_are_removed(tmp_path: Path) -> None:
    log = log_in(tmp_path / "probes")
    assert log.read({"a": PROBLEM, "b": PROBLEM}) == {}
    for fit, result in FITS.items():
        log.add("a", to_text(fit, result))
    again = log_in(tmp_path / "probes")
    assert bits(again.read({"a": PROBLEM, "b": PROBLEM})) == bits(FITS)
    assert again.read({"b": PROBLEM}) == {}
    again.remove("a")
    again.remove("b")
    assert not list((tmp_path / "probes").iterdir())


KEPT = replace(PROBLEM, keeps_classifier=True)


def test_classifier_of_a_final_fit_is_read_back_to_the_last_bit() -> None:
    fit, classifier = (
        FinalFit("a", 0.1),
        Classifier(random.normal(size=3), random.random(3), random.normal(size=3), 1 / 3),
    )
    text = to_text(fit, FinalResult(random.random(2), True, random.random(2), classifier))
    _, result = from_text(text, "a", KEPT)
    assert isinstance(result, FinalResult) and result.classifier is not None
    for name, value in vars(classifier).items():
        assert np.asarray(getattr(result.classifier, name)).tobytes() == np.asarray(value).tobytes()


@pytest.mark.parametrize(
    "classifier",
    [
        None,
        {"mean": [0, 0], "scale": [1, 1], "coefficients": [1], "intercept": 0},
        {"mean": [0, 0], "scale": [1, 0], "coefficients": [1, 2], "intercept": 0},
        {"mean": [0, 0], "scale": [1, 1], "coefficients": [1, float("nan")], "intercept": 0},
        {"mean": 0, "scale": 1, "coefficients": 1, "intercept": 0},
        {"mean": [0], "scale": [1], "coefficients": [1], "intercept": float("inf")},
    ],
)
def test_line_without_the_classifier_that_its_problem_keeps_is_left_out(tmp_path: Path, classifier: object) -> None:
    line = {"c": 0.1, "probabilities": [0.5, 1], "converged": True, "aucs": [0.5, 0.5], "classifier": classifier}
    log = log_in(tmp_path)
    log.add("a", json.dumps(line))
    assert log.read({"a": KEPT}) == {}


def test_line_that_a_crash_cut_off_is_named_and_the_next_one_is_whole(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = log_in(tmp_path)
    first, second, third = (to_text(fit, result) for fit, result in FITS.items())
    log.add("a", first)
    [path] = tmp_path.iterdir()
    path.write_text(f"{first}\n{second[:-9]}")
    assert list(log.read({"a": PROBLEM})) == [FoldFit("a", 0)]
    assert f"warning: 1 of 2 lines of {path} are damaged; these fits run again" in capfd.readouterr().err
    log.add("a", third)
    assert list(log.read({"a": PROBLEM})) == [FoldFit("a", 0), FinalFit("a", 0.1)]
    assert capfd.readouterr().err == ""


def test_line_without_its_end_is_whole_if_only_the_line_break_is_missing(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.add("a", to_text(*next(iter(FITS.items()))))
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().rstrip())
    assert len(log.read({"a": PROBLEM})) == 1
    assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize(
    "line",
    [
        b"\x80\x04N.",
        b"[" * 100_000,
        b"{}",
        b"3",
        b"null",
        b'"c"',
        b'{"fold": 7, "aucs": [0.5, 0.5], "probabilities": [[1, 1, 1], [1, 1, 1]], "converged": [true, true]}',
        b'{"fold": 0, "aucs": [0.5], "probabilities": [[1, 1, 1], [1, 1, 1]], "converged": [true, true]}',
        b'{"fold": 0, "aucs": [0.5, 0.5], "probabilities": [[1, 1], [1, 1, 1]], "converged": [true, true]}',
        b'{"fold": 0, "aucs": [0.5, NaN], "probabilities": [[1, 1, 1], [1, 1, 1]], "converged": [true, true]}',
        b'{"fold": 1e999, "aucs": [0.5, 0.5], "probabilities": [[1, 1, 1], [1, 1, 1]], "converged": [true, true]}',
        b'{"c": 0.1, "probabilities": [0.5, 2], "converged": true}',
        b'{"c": [], "probabilities": [0.5, 1], "converged": true}',
        b'{"c": 0.1, "probabilities": {"a": 1}, "converged": true}',
    ],
)
def test_line_that_is_no_result_of_the_problem_is_left_out(
    tmp_path: Path, line: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    log = log_in(tmp_path)
    text = to_text(FinalFit("a", 0.1), FITS[FinalFit("a", 0.1)])
    log.add("a", text)
    [path] = tmp_path.iterdir()
    path.write_bytes(line + b"\n" + path.read_bytes())
    assert list(log.read({"a": PROBLEM})) == [FinalFit("a", 0.1)]
    assert "1 of 2 lines" in capfd.readouterr().err
    assert path.read_text() == f"{text}\n"


def test_folder_in_place_of_the_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / f"{'0' * 32}.jsonl").mkdir()
    with pytest.raises(UserError, match=f"{'0' * 32}.jsonl"):
        log_in(tmp_path).read({"a": PROBLEM})


def test_a_line_names_neither_the_problem_nor_its_place(tmp_path: Path) -> None:
    fit, result = next(iter(FITS.items()))
    assert from_text(to_text(fit, result), "renamed", PROBLEM)[0] == FoldFit("renamed", 0)
