"""What Ray Tune is told of the search for C: how a trial runs, which comes next, and how far it has got.

Imported only once a Ray session has set the environment that Ray reads on import: see evaluation/fitting/ray_search.py.
"""

import base64
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.tune.search import Searcher, SearchGenerator

from evaluation.fitting.search import (
    FinalFit,
    FinalResult,
    Floats,
    FoldFit,
    FoldResult,
    SearchProblem,
    best_c,
    mean_aucs,
)
from infra.log import progress


class FitTrainable(tune.Trainable):  # type: ignore[misc]
    """A trial: one task in one step. A class, since a function costs Tune a thread and a second round trip a trial."""

    def setup(
        self,
        config: dict[str, Any],
        shared: Mapping[str, Any] | None = None,
        problems: Mapping[str, SearchProblem] | None = None,
    ) -> None:
        """Take what all trials share: references to the feature matrices, and the problems."""
        assert shared is not None, "given by tune.with_parameters"
        assert problems is not None, "given by tune.with_parameters"
        self.shared, self.problems = shared, problems

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take on the next trial."""
        return True

    def step(self) -> dict[str, Any]:
        """Run the task."""
        task = (FinalFit if "c" in self.config["task"] else FoldFit)(**self.config["task"])
        problem = self.problems[task.problem]
        outcome = task(ray.get(self.shared[problem.features]), problem)
        aucs = outcome.aucs.tolist() if isinstance(outcome, FoldResult) else []
        return {"done": True, "aucs": aucs, "outcome": to_text(outcome)}


def to_text(outcome: FoldResult | FinalResult) -> str:
    """Return an outcome as text, which Tune's snapshots hold as it is; they would make arrays six times as long."""
    return base64.b64encode(pickle.dumps(outcome)).decode()


def from_text(text: str) -> Any:
    """Return the outcome that the text stands for."""
    return pickle.loads(base64.b64decode(text))


class TrialOrder(Searcher):  # type: ignore[misc]
    """Which trial comes next: a fold, or a problem's last fit as soon as its folds are in.

    One experiment for both phases, since the actors of an experiment end with it and take seconds to start.
    """

    def __init__(self, problems: Mapping[str, SearchProblem], folds: Sequence[FoldFit]) -> None:
        super().__init__()
        self.problems = dict(problems)
        self.ready: list[tuple[int, FoldFit | FinalFit]] = list(enumerate(folds))
        self.last = {name: len(folds) + number for number, name in enumerate(problems)}
        self.given: dict[str, FoldFit | FinalFit] = {}
        self.done: set[str] = set()
        self.failed: set[str] = set()
        self.aucs: dict[str, dict[int, Floats]] = {name: {} for name in problems}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return a task and its number; None while those that run may still make others ready."""
        if not self.ready:
            return None if len(self.done | self.failed) < len(self.given) else Searcher.FINISHED
        number, task = self.ready.pop(0)
        self.given[trial_id] = task
        return {"number": number, "task": asdict(task)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note a fold's AUCs; with the last one of its problem, that problem's C is chosen."""
        (self.failed if error else self.done).add(trial_id)
        task = self.given[trial_id]
        if error or result is None or not isinstance(task, FoldFit):
            return
        problem, aucs = self.problems[task.problem], self.aucs[task.problem]
        aucs[task.fold] = np.array(result["aucs"])
        if len(aucs) == problem.folds:
            c = best_c(mean_aucs(problem, [aucs[fold] for fold in range(problem.folds)]))
            self.ready.append((self.last[task.problem], FinalFit(task.problem, c)))

    def save(self, checkpoint_path: str) -> None:
        """Write what `restore` reads."""
        Path(checkpoint_path).write_bytes(pickle.dumps((self.ready, self.given, self.done, self.aucs)))

    def restore(self, checkpoint_path: str) -> None:
        """Take up where `save` was called; trials that had failed are run again."""
        self.ready, self.given, self.done, self.aucs = pickle.loads(Path(checkpoint_path).read_bytes())


class TrialSearcher(SearchGenerator):  # type: ignore[misc]
    """Tune's way to ask a searcher, which else would not be asked again once a failure had ended the search."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Take up where Tune saved its state."""
        super().set_state(state | {"finished": False})


class TrialProgress(tune.Callback):  # type: ignore[misc]
    """A progress bar on a terminal, in place of Tune's tables."""

    def __init__(self, total: int) -> None:
        self.total = total

    def setup(self, **_: Any) -> None:
        """Show the bar. Not in __init__, since Tune pickles its callbacks before it calls this."""
        self.shown = 0
        self.bar = progress(range(self.total), "fitting probes", unit="task")
        next(self.bar)

    def on_trial_complete(self, trials: list[Any], **_: Any) -> None:
        """Count the trials that have ended, those of a search taken up included."""
        ended = 1 + sum(trial.is_finished() for trial in trials)
        for _number in range(self.shown, ended):
            next(self.bar, None)
        self.shown = ended
