"""The search for C as Ray Tune sees it: how a trial runs, which one comes next, and the progress bar.

Import this module only inside a `ray_session`, which sets the environment that Ray reads on import.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from evaluation.fitting.fit_log import FitLog, from_text, to_text
from evaluation.fitting.search import (
    FinalFit,
    Fit,
    FitResult,
    FoldFit,
    FoldResult,
    SearchProblem,
    choose_c,
    fold_fits,
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
        fit = fit_of(self.config)
        problem = self.problems[fit.problem]
        result = fit(ray.get(self.shared[problem.features]), problem)
        return {"done": True, "result": to_text(fit, result)}


def fit_of(config: Mapping[str, Any]) -> Fit:
    """Return the fit that a trial runs."""
    return (FinalFit if "c" in config["fit"] else FoldFit)(**config["fit"])


class TrialOrder(Searcher):  # type: ignore[misc]
    """Chooses the next trial: a fold fit, or a problem's final fit as soon as all its folds are done.

    One experiment runs both, because the actors of an experiment end with it and take seconds to start.

    Attributes:
        most: largest number of trials; fits that are finished already need none
    """

    def __init__(self, problems: Mapping[str, SearchProblem], finished: Mapping[Fit, FitResult]) -> None:
        super().__init__()
        self.problems = dict(problems)
        self.aucs: dict[str, dict[int, Float64]] = {name: {} for name in problems}
        self.finished_finals = {fit for fit in finished if isinstance(fit, FinalFit)}
        self.ready: list[Fit] = []
        self.started: dict[str, Fit] = {}
        self.ended: set[str] = set()
        for fit in fold_fits(problems):
            if fit in finished:
                self._add_aucs(fit, finished[fit])
            else:
                self.ready.append(fit)
        self.most = len(self.ready) + sum(len(aucs) < problems[name].folds for name, aucs in self.aucs.items())

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return a fit; None while running trials may still make others ready."""
        if not self.ready:
            return None if len(self.ended) < len(self.started) else Searcher.FINISHED
        self.started[trial_id] = self.ready.pop(0)
        return {"fit": asdict(self.started[trial_id])}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record a fold's AUCs; after the last fold of a problem, choose its C."""
        self.ended.add(trial_id)
        fit = self.started[trial_id]
        if not error and result is not None and isinstance(fit, FoldFit):
            self._add_aucs(*from_text(result["result"], fit.problem, self.problems[fit.problem]))

    def save(self, checkpoint_path: str) -> None:
        """Write nothing into Tune's snapshots, because a search resumes from its `FitLog`."""

    def _add_aucs(self, fit: Fit, result: FitResult) -> None:
        assert isinstance(fit, FoldFit)
        assert isinstance(result, FoldResult)
        problem, aucs = self.problems[fit.problem], self.aucs[fit.problem]
        aucs[fit.fold] = result.aucs
        if len(aucs) == problem.folds:
            final = FinalFit(fit.problem, choose_c(problem, [aucs[fold] for fold in range(problem.folds)]))
            if final not in self.finished_finals:
                self.ready.append(final)


class TrialProgress(tune.Callback):  # type: ignore[misc]
    """Logs each finished fit, and shows a progress bar on a terminal instead of Tune's tables."""

    def __init__(self, total: int, log: FitLog | None) -> None:
        self.total, self.log = total, log

    def setup(self, **_: Any) -> None:
        """Show the bar. Not in __init__, because Tune pickles its callbacks before it calls this."""
        self.bar = progress(range(self.total), "fitting probes", unit="fit")
        next(self.bar)

    def on_trial_complete(self, trial: Any, **_: Any) -> None:
        """Log and count a fit."""
        if self.log and "result" in trial.last_result:  # an interrupted trial has none
            self.log.add(fit_of(trial.config).problem, trial.last_result["result"])
        next(self.bar, None)
