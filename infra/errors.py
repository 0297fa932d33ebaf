"""The errors that end a command in one line, each with its exit code."""


class UserError(Exception):
    """Wrong usage or wrong input (exit code 2).

    The message is one line that names the thing, its value, the rule and a way out, such as
    `data.lanes=12 must divide data.global_batch=256; try 8 or 16`.

    Attributes:
        exit_code: the exit code of the command
    """

    exit_code = 2


class MissingHere(UserError):
    """A file or package that this machine lacks; another one may have it."""


class RunFailed(Exception):
    """The input was right, but the work failed or a check found a difference (exit code 1).

    Attributes:
        exit_code: the exit code of the command
    """

    exit_code = 1


def require(condition: bool, message: str) -> None:
    """Check something that the user gave.

    Raises:
        UserError: with `message`, unless `condition` holds
    """
    if not condition:
        raise UserError(message)
