"""What a run computes, to tell whether a start may continue the checkpoints of another."""

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from infra.configuration.options import key

INIT: Final = "model.init"


class Difference(NamedTuple):
    """A difference as the start of a sentence (`seed=1 differs from 0`), and how to avoid it (`use seed=0`)."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Computation:
    """What a run computes.

    Attributes:
        config: settings that determine the result, as JSON values by key; of model.init, the hash of the weights
        data_identity: identity of the shards' content
        defaults: the same settings if nothing is chosen, which is what versions without an option did
    """

    config: dict[str, Any]
    data_identity: str
    defaults: dict[str, Any] = field(default_factory=dict)

    def difference(self, before: "Computation") -> Difference | None:
        """Return the first difference from an earlier start; a key that it lacks belongs to a later version."""
        started, starts = before.config.get(INIT), self.config.get(INIT)  # versions without it had random weights
        if started != starts:
            remedy = f"use those with SHA-256 {started}" if started else f"leave {INIT} out"
            return Difference(f"the weights of {INIT} (SHA-256 {starts}) are not the first ones", remedy)
        for name, value in self.config.items():
            earlier = before.config.get(name, self.defaults.get(name, value))
            if value != earlier:
                return Difference(f"{name}={value} differs from {earlier}", f"use {name}={earlier}")
        if self.data_identity != before.data_identity:
            # Not at the top, so that a supervisor, which only finds checkpoints, does not load numpy and requests.
            from sharding.reading.data_config import DataConfig  # noqa: PLC0415

            return Difference(f"the content of {key(DataConfig, 'shards')} differs from that", "use the same shards")
        return None
