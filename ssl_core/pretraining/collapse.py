"""The alarm for a run whose projections say the same about all images, or nothing about any."""

from collections.abc import Mapping
from typing import Final

from infra.configuration.options import key
from ssl_core.loss.config import LossConfig
from ssl_core.model.encoder import ModelConfig
from ssl_core.model.optimizer import OptimConfig

_LINES: Final = 3  # in a row, since a single batch may look bad
_LEAST_DEVIATION: Final = 0.1  # 0 if all projections are equal, 1 if they are spread evenly
_LEAST_RANK: Final = 2.0  # 1 if all lie on one line
_LEAST_GAP: Final = 0.02  # cosine similarity of positives above that of negatives


class CollapseAlarm:
    """On after three lines in a row with a sign of collapse, from the end of the first epoch and the warm-up on.

    An untrained network shows the same signs, so it takes an epoch before they mean something.

    Attributes:
        is_on: whether the last lines show a collapse
    """

    def __init__(self, warmup_steps: int) -> None:
        self.is_on = False
        self._warmup_steps = warmup_steps
        self._signs = 0

    def look_at(self, step: int, epoch: float, health: Mapping[str, float]) -> str:
        """Look at the health of a line of metrics.

        Args:
            step: number of steps done
            epoch: epochs done
            health: values by tag, as `HealthWatch.measure` returns them; a line without any changes nothing

        Returns:
            The warning, where the alarm has just begun; otherwise nothing.
        """
        if not health or epoch < 1 or step < self._warmup_steps:
            return ""
        sign = _sign(health)
        self._signs = self._signs + 1 if sign else 0
        was_on, self.is_on = self.is_on, self._signs >= _LINES
        if was_on or not self.is_on:
            return ""
        return (
            f"the projections have collapsed: {sign}, in {_LINES} lines of metrics up to step {step}; start again with "
            f"a lower {key(OptimConfig, 'learning_rate')}, another {key(LossConfig, 'temperature')}, or "
            f"{key(ModelConfig, 'head_norm')}=true"
        )


def _sign(health: Mapping[str, float]) -> str:
    """Return the sign of collapse in these values; empty if there is none."""
    deviation, rank = health["health/projection_deviation"], health["health/projection_rankme"]
    gap = health["health/positive_similarity"] - health["health/negative_similarity"]
    if deviation < _LEAST_DEVIATION:
        return f"their deviation is {deviation:.3f}, below {_LEAST_DEVIATION}"
    if rank < _LEAST_RANK:
        return f"their effective rank is {rank:.2f}, below {_LEAST_RANK:g}"
    if gap < _LEAST_GAP:
        return f"positives are only {gap:.3f} more similar than negatives, less than {_LEAST_GAP}"
    return ""
