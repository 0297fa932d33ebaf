import sys
from typing import get_args

import pytest

from infra.errors import UserError
from infra.extras import Extra, has_extra, require_extra


@pytest.mark.parametrize("name", get_args(Extra))
def test_each_installed_extra_passes(name: Extra) -> None:
    assert has_extra(name)
    require_extra(name, "a setting")


def test_a_missing_extra_is_one_line_with_two_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    assert not has_extra("deepspeed")
    with pytest.raises(UserError) as raised:
        require_extra("deepspeed", "engine.kind=deepspeed", instead="take engine.kind=ddp")
    assert str(raised.value) == (
        'engine.kind=deepspeed needs DeepSpeed, which is not installed; pip install "sternum[deepspeed]", '
        "or take engine.kind=ddp"
    )


def test_a_missing_extra_without_an_alternative_names_only_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia", None)
    assert not has_extra("dali")
    with pytest.raises(UserError, match=r'needs NVIDIA DALI, which is not installed; pip install "sternum\[dali\]"$'):
        require_extra("dali", "executor=dali")
