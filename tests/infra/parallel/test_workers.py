from dataclasses import dataclass

import numpy as np
import pytest

from infra.configuration.options import require_cluster
from infra.errors import UserError
from infra.parallel.workers import Workers
from infra.versions import NOT_INSTALLED, differences, versions


@dataclass(frozen=True)
class Config:
    workers: int = 0
    address: str | None = None


def test_one_process_computes_in_this_one_and_nothing_needs_no_cluster() -> None:
    assert list(Workers(processes=1).map(abs, [-1, 2, -3], total=3)) == [1, 2, 3]
    assert list(Workers(address="nowhere:1").map(abs, [], total=0)) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            Config(workers=2, address="auto"),
            "address=auto names a Ray cluster and excludes workers=2; remove one of them",
        ),
        (Config(address="ray://anna:secret@head:10001"), r"ray://head:10001 must not contain a user"),
    ],
)
def test_a_cluster_excludes_processes_and_its_address_holds_no_password(config: Config, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        require_cluster(config)
    assert "secret" not in str(raised.value)
    require_cluster(Config(workers=2))
    require_cluster(Config(address="auto"))


def test_versions_are_those_of_this_process_and_their_differences_have_names() -> None:
    ours = versions()
    assert ours["numpy"] == np.__version__
    assert differences(ours, ours) == []
    other = {name: version for name, version in ours.items() if name != "torch"} | {"pillow": "1.0"}
    assert differences(ours, other) == [
        f"pillow 1.0 instead of {ours['pillow']}",
        f"torch {NOT_INSTALLED} instead of {ours['torch']}",
    ]
