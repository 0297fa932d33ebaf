"""What an examination finds."""

from dataclasses import dataclass

from infra.errors import RunFailed, UserError


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: name of the check, such as `clocks`
        text: what was found, in one line
        mend: what to do about it; None if nothing is wrong
        is_warning: whether a run may start all the same
    """

    check: str
    text: str
    mend: str | None = None
    is_warning: bool = False

    @property
    def is_wrong(self) -> bool:
        """Whether something must be mended before a run."""
        return self.mend is not None and not self.is_warning


def finding_of(check: str, error: UserError | RunFailed) -> Finding:
    """Return an error as a finding; what follows its first semicolon is the way out."""
    text, _, mend = str(error).partition("; ")
    return Finding(check, text, mend or "mend this, and run sternum doctor again")
