"""Fixtures of all tests of ssl_core: options are named as in `sternum pretrain`."""

from collections.abc import Iterator

import pytest

from infra.configuration.options import registered
from ssl_core.pretraining.config import PretrainConfig


@pytest.fixture(autouse=True)
def options_of_pretrain() -> Iterator[None]:
    with registered(PretrainConfig):
        yield
