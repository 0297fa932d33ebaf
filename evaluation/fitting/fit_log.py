"""The finished fits of a search, one line of JSON each, so that a killed search does not repeat them.

A run folder may come from somebody else, so nothing in it is unpickled: a line is plain data, and its shapes and values
are checked.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from evaluation.fitting.search import FinalFit, FinalResult, Fit, FitResult, FoldFit, FoldResult, SearchProblem
from evaluation.results.classifier import Classifier
from infra.arrays import Float64
from infra.log import say
from infra.storage.append_file import AppendFile
from infra.storage.files import disk_errors, read_regular, write_atomic

# What parsing JSON, and taking values out of it, raises if somebody else wrote it.
DAMAGED: Final = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class FitLog:
    """A file for each problem, which holds its finished fits until its probe is complete.

    Attributes:
        folder: folder of the files
        identities: for each problem by name, a hash of everything that its fits depend on; names its file
    """

    folder: Path
    identities: Mapping[str, str]

    def read(self, problems: Mapping[str, SearchProblem]) -> dict[Fit, FitResult]:
        """Return the finished fits of these problems; a damaged line gets a warning, and its fit runs again."""
        results: dict[Fit, FitResult] = {}
        for name, problem in problems.items():
            path = self._path(name)
            with disk_errors(path):
                content = read_regular(path) if path.exists() else b""
            whole = []
            for line in content.splitlines():
                try:
                    fit, result = from_text(line, name, problem)
                except DAMAGED:
                    continue
                whole.append(line + b"\n")
                results[fit] = result
            damaged = len(content.splitlines()) - len(whole)
            if damaged:
                say(f"warning: {damaged} of {damaged + len(whole)} lines of {path} are damaged; these fits run again")
            if b"".join(whole) != content:  # the next line must not continue one that a crash cut off
                write_atomic(path, b"".join(whole))
        return results

    def add(self, problem: str, text: str) -> None:
        """Append a finished fit of a problem, as `to_text` wrote it."""
        with AppendFile(self._path(problem)) as file:
            file.write(f"{text}\n".encode())

    def remove(self, problem: str) -> None:
        """Remove the fits of a problem, whose probe is complete."""
        with disk_errors(self._path(problem)):
            self._path(problem).unlink(missing_ok=True)

    def _path(self, problem: str) -> Path:
        return self.folder / f"{self.identities[problem][:32]}.jsonl"


def to_text(fit: Fit, result: FitResult) -> str:
    """Write a finished fit as one line of JSON, which keeps every bit of its numbers."""
    key = {"fold": fit.fold} if isinstance(fit, FoldFit) else {"c": fit.c}
    return json.dumps(key | asdict(result), default=np.ndarray.tolist)


def from_text(text: str | bytes, name: str, problem: SearchProblem) -> tuple[Fit, FitResult]:
    """Read what `to_text` wrote.

    Args:
        text: the line
        name: name of the problem
        problem: the problem that was fitted

    Returns:
        The fit and its result.

    Raises:
        One of `DAMAGED`: if the line is no result of this problem
    """
    values, grid = json.loads(text), len(problem.c_grid)
    if "c" in values:
        final = FinalResult(
            probabilities=unit_array(values["probabilities"], int(np.sum(problem.fold == -1))),
            converged=bool(values["converged"]),
            aucs=unit_array(values["aucs"], grid if problem.tests_every_c else 0),
            classifier=classifier_of(values["classifier"]) if problem.keeps_classifier else None,
        )
        return FinalFit(name, float(values["c"])), final
    fold = int(values["fold"])
    fit = FoldFit(name, fold)
    return fit, FoldResult(
        aucs=unit_array(values["aucs"], grid),
        probabilities=unit_array(values["probabilities"], grid, int(np.sum(problem.fold == fold))),
        converged=unit_array(values["converged"], grid).astype(np.bool_),
    )


def classifier_of(values: Any) -> Classifier:
    """Return a classifier from JSON; raise one of `DAMAGED` if these are not finite numbers of one length."""
    mean, scale, coefficients = (np.array(values[name], np.float64) for name in ("mean", "scale", "coefficients"))
    numbers, intercept = np.stack([mean, scale, coefficients]), float(values["intercept"])
    if not (numbers.ndim == 2 and np.isfinite(numbers).all() and np.isfinite(intercept) and (scale > 0).all()):
        raise ValueError("not the numbers of a classifier")
    return Classifier(mean, scale, coefficients, intercept)


def unit_array(values: Any, *shape: int) -> Float64:
    """Return numbers from 0 to 1 as an array; raise ValueError if they are not, or have another shape."""
    array = np.array(values, np.float64)
    if array.shape != shape or not np.all((array >= 0) & (array <= 1)):
        raise ValueError(f"not numbers from 0 to 1 of shape {shape}")
    return array
