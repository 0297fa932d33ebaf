"""The two ways in which a command ends badly, each with its exit code."""


class UserError(Exception):
    """Wrong usage or wrong input (exit code 2).

    The message is one line that names the thing, its value, the rule and a way out, for example
    ``data.lanes=12 must divide data.global_batch=256; try 8 or 16``.
    """

    exit_code = 2


class RunFailed(Exception):
    """The input was right and yet the work could not be done, or a check found a difference (exit code 1)."""

    exit_code = 1


def require(condition: bool, message: str) -> None:
    """Raise UserError(message) unless `condition` holds: the checks of configuration values in one line each."""
    if not condition:
        raise UserError(message)
