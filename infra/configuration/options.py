"""Options as the user must type them, and the checks of their values.

A dataclass does not know its section in the configuration of the running command: `FetchConfig.limit_gb` is
`--data.fetch.limit_gb`. `infra.configuration.config.parse` registers the sections here, so that every error names the
key as the user must type it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, Final, get_args, get_type_hints

from infra.configuration.schema import value_in_words
from infra.errors import require
from infra.extras import require_extra
from infra.urls import require_no_credentials

_prefixes: dict[type, str] = {}

SEEDS: Final = 2**63  # seeds are below it, so that they fit a signed 64-bit integer everywhere


def register(config_class: type) -> None:
    """Use the keys of this configuration in messages."""
    _prefixes.clear()
    _prefixes.update(_tree(config_class, ""))


@contextmanager
def registered(config_class: type) -> Iterator[None]:
    """Use the keys of this configuration in messages within the block."""
    before = dict(_prefixes)
    register(config_class)
    try:
        yield
    finally:
        _prefixes.clear()
        _prefixes.update(before)


def _tree(config_class: type, prefix: str) -> dict[type, str]:
    prefixes = {config_class: prefix}
    hints = get_type_hints(config_class)
    for field in fields(config_class):
        for inner in (hints[field.name], *get_args(hints[field.name])):
            if isinstance(inner, type) and is_dataclass(inner):
                prefixes |= _tree(inner, f"{prefix}{field.name}.")
    return prefixes


def key(config: Any, name: str) -> str:
    """Return the key of a field, such as `data.fetch.limit_gb`.

    Args:
        config: a configuration dataclass or an instance of one
        name: name of the field
    """
    config_class = config if isinstance(config, type) else type(config)
    assert name in {field.name for field in fields(config_class)}, f"{config_class.__name__} has no field {name}"
    return f"{_prefixes.get(config_class, '')}{name}"


def setting(config: Any, name: str) -> str:
    """Return the key of a field with its value, such as `data.fetch.limit_gb=0`."""
    value = getattr(config, name)
    return f"{key(config, name)}={value_in_words(value) if isinstance(value, list) else value}"


def require_at_least(config: Any, name: str, least: float, hint: str) -> None:
    """Raise UserError if the field is below `least`; None passes. `hint` is the way out, such as "try 64"."""
    value = getattr(config, name)
    require(value is None or value >= least, f"{setting(config, name)} must be at least {least}; {hint}")


def require_positive(config: Any, name: str, hint: str) -> None:
    """Raise UserError unless the field is above 0; None passes. `hint` is the way out, such as "try 600"."""
    value = getattr(config, name)
    require(value is None or value > 0, f"{setting(config, name)} must be positive; {hint}")


def require_between(config: Any, name: str, least: float, most: float, hint: str) -> None:
    """Raise UserError unless the field is from `least` to `most`; None passes. `hint` is the way out."""
    value = getattr(config, name)
    rule = f"must be between {least} and {most}"
    require(value is None or least <= value <= most, f"{setting(config, name)} {rule}; {hint}")


def require_seed(config: Any, name: str = "seed") -> None:
    """Raise UserError if the field is not a seed, a number from 0 to 2^63 - 1."""
    value = getattr(config, name)
    require(0 <= value < SEEDS, f"{setting(config, name)} must be between 0 and 2^63 - 1; use 0")


def require_resamples(config: Any, name: str = "bootstrap_resamples") -> None:
    """Raise UserError if the field is not a number of resamples, where 0 means no intervals."""
    value = getattr(config, name)
    require(value == 0 or value >= 100, f"{setting(config, name)} must be 0 or at least 100; try 1000")


def require_described(config: Any, name: str, what: str) -> None:
    """Raise UserError if the field is None and another field, which describes it, is not at its default.

    Args:
        config: an options object whose fields all have defaults
        name: the field that the others describe
        what: what it names, for the message, such as "table"
    """
    if getattr(config, name) is None:
        for field in fields(config):
            is_default = getattr(config, field.name) == field.default
            require(
                is_default,
                f"{setting(config, field.name)} describes a {what}; name the {what} too: {key(config, name)}",
            )


def require_workers(config: Any, name: str = "workers") -> None:
    """Raise UserError if the field is not a number of processes, where 0 means one for each CPU."""
    value = getattr(config, name)
    require(value >= 0, f"{setting(config, name)} must not be negative; 0 means one for each CPU")


def require_cluster(config: Any, name: str = "address") -> None:
    """Check the address of a Ray cluster; None passes.

    Raises:
        UserError: if it holds credentials, processes of this machine are asked for as well, or Ray is not installed
    """
    address = getattr(config, name)
    if address is None:
        return
    require_no_credentials(address, key(config, name))
    require(
        config.workers == 0,
        f"{setting(config, name)} names a Ray cluster and excludes {setting(config, 'workers')}; remove one of them",
    )
    require_extra("ray", setting(config, name), instead=f"leave {key(config, name)} out to use this machine")
