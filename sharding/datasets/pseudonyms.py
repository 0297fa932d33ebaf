"""Pseudonyms of patients, studies and files: keyed hashes, which nobody can reverse without the key.

A hash without a key is no pseudonym: whoever computes the hashes of all medical record numbers, of which a hospital has
some millions, finds the one that it belongs to.
"""

import hmac
from pathlib import Path
from typing import Final

from infra.errors import UserError, require

MAKE_KEY: Final = "(umask 077; head -c 32 /dev/urandom > {path})"

_KEY_BYTES: Final = range(16, 4097)
_OTHERS: Final = 0o077  # the permissions of the group and of everybody else


class Pseudonyms:
    """Gives pseudonyms: the same for the same key and identifier, in every packing.

    Attributes:
        fingerprint: tells this key from others without revealing it
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.fingerprint = self.of("fingerprint", "")

    def of(self, kind: str, identifier: str) -> str:
        """Return 64 bits of HMAC-SHA256 in hexadecimal.

        Args:
            kind: what the identifier names, such as "patient"; equal identifiers of two kinds have two pseudonyms
            identifier: the identifier
        """
        return hmac.digest(self._key, f"{kind}:{identifier}".encode(), "sha256")[:8].hex()


def read_key(path: Path, option: str) -> Pseudonyms:
    """Return the pseudonyms of a key file.

    Args:
        path: a file of 16 to 4096 random bytes that only its owner can read
        option: the option that names it, for messages

    Raises:
        UserError: if the file is not such a file
    """
    where, make = f"{option}={path}", f"make it: {MAKE_KEY.format(path=path)}"
    try:
        require(path.is_file(), f"{where} is not a file; {make}")
        mode = path.stat().st_mode
        require(
            not mode & _OTHERS,
            f"{where} must be readable only by its owner, but its mode is {mode & 0o777:04o}; chmod 600 {path}",
        )
        with path.open("rb") as file:
            key = file.read(_KEY_BYTES.stop)
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}; check its permissions") from error
    require(
        len(key) in _KEY_BYTES,
        f"{where} must have {_KEY_BYTES[0]} to {_KEY_BYTES[-1]} bytes, but has {path.stat().st_size}; {make}",
    )
    return Pseudonyms(key)
