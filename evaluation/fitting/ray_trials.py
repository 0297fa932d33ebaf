"""The search for C as Ray Tune sees it: how a trial runs, which one comes next, and the progress bar.

Import this module only inside a `ray_session`, which sets the environment that Ray reads on import.
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
    FoldFit,
    FoldResult,
    SearchProblem,
    best_c,
    mean_aucs,
)
from infra.arrays import Float64
from infra.log import progress


class FitTrainable(tune.Trainable):  # type: ignore[misc]
    """A trial: one fit in one step. A class, because Tune gives a function a thread and a second round trip."""

    def setup(
        self,
        config: dict[str, Any],
        shared: Mapping[str, Any] | None = None,
        problems: Mapping[str, SearchProblem] | None = None,
    ) -> None:
        """Keep what all trials share: references to the feature matrices, and the problems."""
        assert shared is not None, "given by tune.with_parameters"
        assert problems is not None, "given by tune.with_parameters"
        self.shared, self.problems = shared, problems

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Accept the next trial."""
        return True

    def step(self) -> dict[str, Any]:
        """Run the fit."""
        fit = (FinalFit if "c" in self.config["fit"] else FoldFit)(**self.config["fit"])
        problem = self.problems[fit.problem]
        outcome = fit(ray.get(self.shared[problem.features]), problem)
        aucs = outcome.aucs.tolist() if isinstance(outcome, FoldResult) else []
        return {"done": True, "aucs": aucs, "outcome": to_text(outcome)}


def to_text(outcome: FoldResult | FinalResult) -> str:
    """Encode an outcome as text, which Tune's snapshots store unchanged; they would make arrays six times as long."""
    return base64.b64encode(pickle.dumps(outcome)).decode()


def from_text(text: str) -> Any:
    """Decode what `to_text` encoded."""
    return pickle.loads(base64.b64decode(text))


class TrialOrder(Searcher):  # type: ignore[misc]
    """Chooses the next trial: a fold fit, or a problem's final fit as soon as all its folds are done.

    One experiment runs both, because the actors of an experiment end with it and take seconds to start.
    """

    def __init__(self, problems: Mapping[str, SearchProblem], folds: Sequence[FoldFit]) -> None:
        super().__init__()
        self.problems = dict(problems)
        self.ready: list[tuple[int, FoldFit | FinalFit]] = list(enumerate(folds))
        self.final_numbers = {name: len(folds) + number for number, name in enumerate(problems)}
        self.started: dict[str, FoldFit | FinalFit] = {}
        self.done: set[str] = set()
        self.failed: set[str] = set()
        self.aucs: dict[str, dict[int, Float64]] = {name: {} for name in problems}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return a fit and its number; None while running trials may still make others ready."""
        if not self.ready:
            return None if len(self.done | self.failed) < len(self.started) else Searcher.FINISHED
        number, fit = self.ready.pop(0)
        self.started[trial_id] = fit
        return {"number": number, "fit": asdict(fit)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record a fold's AUCs; after the last fold of a problem, choose its C."""
        (self.failed if error else self.done).add(trial_id)
        fit = self.started[trial_id]
        if error or result is None or not isinstance(fit, FoldFit):
            return
        problem, aucs = self.problems[fit.problem], self.aucs[fit.problem]
        aucs[fit.fold] = np.array(result["aucs"])
        if len(aucs) == problem.folds:
            c = best_c(mean_aucs(problem, [aucs[fold] for fold in range(problem.folds)]))
            self.ready.append((self.final_numbers[fit.problem], FinalFit(fit.problem, c)))

    def save(self, checkpoint_path: str) -> None:
        """Write the state that `restore` reads."""
        Path(checkpoint_path).write_bytes(pickle.dumps((self.ready, self.started, self.done, self.aucs)))

    def restore(self, checkpoint_path: str) -> None:
        """Restore the state that `save` wrote; trials that had failed run again."""
        self.ready, self.started, self.done, self.aucs = pickle.loads(Path(checkpoint_path).read_bytes())


class TrialSearcher(SearchGenerator):  # type: ignore[misc]
    """Tune's wrapper of a searcher, changed to query it again after a failure has ended the search."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore Tune's state, except that the search is over."""
        super().set_state(state | {"finished": False})


class TrialProgress(tune.Callback):  # type: ignore[misc]
    """A progress bar on a terminal instead of Tune's tables."""

    def __init__(self, total: int) -> None:
        self.total = total

    def setup(self, **_: Any) -> None:
        """Show the bar. Not in __init__, because Tune pickles its callbacks before it calls this."""
        self.shown = 0
        self.bar = progress(range(self.total), "fitting probes", unit="fit")
        next(self.bar)

    def on_trial_complete(self, trials: list[Any], **_: Any) -> None:
        """Count the trials that have ended, including those of a resumed search."""
        ended = 1 + sum(trial.is_finished() for trial in trials)
        for _number in range(self.shown, ended):
            next(self.bar, None)
        self.shown = ended
