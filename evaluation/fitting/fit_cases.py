"""Fits all cases of a probe, by Ray or in this process, in groups whose features fit into memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from evaluation.fitting.fit_log import FitLog
from evaluation.fitting.probe_cache import cached_probes
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.fitting.ray_search import search_with_ray
from evaluation.fitting.search import FittedProbe, SearchProblem, search_serially
from infra.arrays import Float32
from infra.parallel.ray_session import ray_session

_GROUP_BYTES: Final = 2 << 30  # of features in one search, which holds them in memory once more

FittedCases = Mapping[ProbeCase, Sequence[FittedProbe]]  # one fitted probe for each round of a case


@dataclass(frozen=True)
class CaseFitter:
    """Fits each round of a case once; reads the rounds of earlier fits from a folder.

    Attributes:
        folder: folder of the features, with the cache of fitted probes
        search: ray or serial; both give the same results
        cores: cores of this machine for Ray; None for all
        address: a Ray cluster to use instead
    """

    folder: Path
    search: Literal["ray", "serial"]
    cores: int | None = None
    address: str | None = None

    def fit(self, cases: Sequence[ProbeCase]) -> dict[ProbeCase, list[FittedProbe]]:
        """Return the fitted probes of each case, one for each round."""
        fitted: dict[ProbeCase, list[FittedProbe]] = {}
        for group in _groups(cases):
            rounds = {case: list(case.rounds()) for case in group}
            probes = cached_probes(
                self.folder / "probes",
                {case.matrix.identity: case.matrix.values for case in group},
                [item for of_case in rounds.values() for item in of_case],
                self._search,
            )
            fitted |= {case: [probes[item.name] for item in of_case] for case, of_case in rounds.items()}
        return fitted

    def _search(
        self, features: Mapping[str, Float32], problems: Mapping[str, SearchProblem], log: FitLog
    ) -> dict[str, FittedProbe]:
        if self.search == "serial":
            return search_serially(features, problems)
        used = {problem.features: features[problem.features] for problem in problems.values()}
        with ray_session(self.cores, self.address, sum(values.nbytes for values in used.values())):
            return search_with_ray(used, problems, log)


def _groups(cases: Sequence[ProbeCase]) -> Iterator[list[ProbeCase]]:
    """Divide cases so that the features of each group are bounded."""
    group: list[ProbeCase] = []
    sizes: dict[str, int] = {}
    for case in cases:
        size = case.matrix.values.nbytes
        if group and case.matrix.identity not in sizes and sum(sizes.values()) + size > _GROUP_BYTES:
            yield group
            group, sizes = [], {}
        sizes[case.matrix.identity] = size
        group.append(case)
    if group:
        yield group
