"""The time that a run has taken over all its starts, and how much of it made steps that count."""

import time
from collections.abc import Mapping


class RunClock:
    """Counts training time across starts; a resumed run goes on from its last line of metrics.

    The time of steps that are made again after a crash is lost: the lines of metrics about them are gone.
    """

    def __init__(self, last_line: Mapping[str, float] | None, earlier_starts: int) -> None:
        """Start the clock.

        Args:
            last_line: the metrics of the last step that still counts; None for a new run
            earlier_starts: starts of the run before this one, rollbacks included
        """
        line = last_line or {"time_s": time.time()}
        self._began_s = line["time_s"] - line.get("run/age_s", 0.0)  # an older version did not write it
        self._training_s = line.get("run/training_s", 0.0)
        self._restarts = earlier_starts

    def values(self, training_s: float) -> dict[str, float]:
        """Return the numbers by tag after `training_s` more seconds of training."""
        self._training_s += training_s
        age_s = max(time.time() - self._began_s, self._training_s)  # clocks of two machines may differ
        return {
            "run/age_s": round(age_s, 3),
            "run/training_s": round(self._training_s, 3),
            "run/training_share": self._training_s / age_s if age_s else 0.0,
            "run/restarts": self._restarts,
        }
