"""URLs that users give, without secrets in anything shown or written.

A URL ends up in messages, in `config.yaml`, in results and in logs. So no URL may contain a user, a password, a query
or a fragment: each client finds its credentials in its own files or environment variables.
"""

import re
from pathlib import Path
from typing import Final, NamedTuple

from infra.errors import require

Location = str | Path  # a folder as a user names it: a path or a URL

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # at least two characters: C: is a disk
_REST: Final = re.compile(r"//([^/?#]*)([^?#]*)(.*)", re.DOTALL)  # authority, path, query and fragment
_HOST_AND_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]*)(:\d*)?")
_WITH_PORT: Final = ("http", "https", "ray")
_HINTS: Final = {
    "http": "use ~/.netrc instead",
    "https": "use ~/.netrc instead",
    "s3": "use ~/.aws/credentials or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead",
    "gs": "use gcloud auth application-default login or GOOGLE_APPLICATION_CREDENTIALS instead",
}


class _Parts(NamedTuple):
    """A URL without its secrets, and whether it has any."""

    shown: str
    has_credentials: bool


def scheme_of(location: Location) -> str | None:
    """Return the scheme of a URL in lower case, None for a path."""
    match = _SCHEME.match(location) if isinstance(location, str) else None
    return match[1].lower() if match else None


def shown(location: Location) -> str:
    """Return a location for messages and files: a URL without user, password, query, fragment and final slashes.

    If a misplaced `/`, `?` or `#` hides where a password ends, only the scheme remains, as in `https://...`.
    """
    return _parts(location).shown


def require_no_credentials(location: Location, option: str = "") -> None:
    """Check that a URL contains nothing that may be secret; paths pass.

    Args:
        location: a path or a URL
        option: the option that holds it, such as `data.shards`

    Raises:
        UserError: if the URL has a user, a password, a query or a fragment; the message shows none of them
    """
    parts = _parts(location)
    hint = _HINTS.get(scheme_of(location) or "", "remove them")
    require(
        not parts.has_credentials,
        f"{f'{option}=' * bool(option)}{parts.shown} must not contain a user, a password, a query or a fragment; "
        f"{hint}",
    )


def scrub(text: str) -> str:
    """Return a line of text without the user, password, query and fragment of any URL in it.

    Remove everything from the first URL's slashes to the last `@`, because a password may contain any character. A URL
    that became a path, such as `https:/server/x?token=1`, counts too.
    """
    users = r"\b([A-Za-z][A-Za-z0-9+.-]*:/|(?:https?|s3|gs|file):).*@"
    without_users = re.sub(users, lambda match: f"{match[1].rstrip('/')}//", text)
    # urllib3 names a URL by its path alone: "Max retries exceeded with url: /x?token=1".
    return re.sub(r"((?::|url: )/[^\s?#]*)[?#]\S*", r"\1", without_users)


def _parts(location: Location) -> _Parts:
    match = _SCHEME.match(location) if isinstance(location, str) else None
    if match is None or not isinstance(location, str):
        return _Parts(str(location), False)
    scheme, rest = match[1].lower(), location[match.end() :]
    parts = _REST.fullmatch(rest)
    if parts is None:
        return _Parts(f"{scheme}:...", re.search("[@?#]", rest) is not None)
    authority, path, tail = parts.groups()
    host = authority.rpartition("@")[2]
    is_host = _HOST_AND_PORT.fullmatch(host) if scheme in _WITH_PORT else ":" not in host
    is_ambiguous = ":" in authority and "@" in path + tail
    bare = f"{scheme}://{host}{path.rstrip('/')}" if is_host and not is_ambiguous else f"{scheme}://..."
    return _Parts(bare, "@" in authority or bool(tail) or is_ambiguous)
