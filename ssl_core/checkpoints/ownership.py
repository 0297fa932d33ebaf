"""The owner of a mirror: one run, so that no other run replaces or removes the only copies of its checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from socket import gethostname
from typing import Any, Final

from infra.configuration.options import key
from infra.errors import UserError, require
from infra.log import say
from infra.storage.json_files import BadJson, decode_json, encode_json
from infra.storage.object_store import ObjectStore
from ssl_core.checkpoints.computation import Computation
from ssl_core.checkpoints.retention import CheckpointConfig

OWNER: Final = "owner.json"


@dataclass(frozen=True)
class Owner:
    """The content of `owner.json` in a mirror.

    Attributes:
        start: random name of the start that writes to the mirror
        run_folder: its run folder, as HOST:PATH, for people
        config: as in `Computation`
        data_identity: likewise
    """

    start: str
    run_folder: str
    config: dict[str, Any]
    data_identity: str

    @property
    def computation(self) -> Computation:
        """What the owner computes."""
        return Computation(self.config, self.data_identity)


class Ownership:
    """Makes one start of a run the owner of a mirror, and checks that it still is.

    A start that computes the same as the owner, such as that of a replacement machine, takes the mirror over; the
    owner before it can then change nothing any more. A store has no transactions: if two runs start at the same
    moment in a store without conditional writes, both may believe that they own it until their first copy.
    """

    def __init__(self, store: ObjectStore, run: Path, computation: Computation) -> None:
        """Prepare the claim.

        Args:
            store: the mirror
            run: the run folder
            computation: what the run computes
        """
        self._store, self._computation = store, computation
        place = f"{gethostname()}:{run.absolute()}"
        self._me = Owner(token_hex(16), place, computation.config, computation.data_identity)
        self._is_claimed = False

    def claim(self, newest_copy: Callable[[], Computation | None]) -> None:
        """Become the owner, or check that this start still is.

        Args:
            newest_copy: returns what the newest copy in the store is a part of; None without one

        Raises:
            UserError: if the mirror belongs to another run, or another start has taken it over
            RunFailed: if the store cannot be reached
        """
        owner = self._read()
        if owner is not None and owner.start == self._me.start:
            return
        if owner is None:
            self._require_same(newest_copy(), "made its copies")  # with a version without owners
            self._store.create(encode_json(self._me), OWNER)
        elif self._is_claimed:
            raise UserError(
                f"{self._store.name} was taken over by the run in {owner.run_folder}, so this one changes nothing "
                f"there; keep one of the two, or give this one another {_option()}"
            )
        else:
            self._require_same(owner.computation, f"owns it, in {owner.run_folder}")
            if owner.run_folder != self._me.run_folder:
                say(f"taking over {self._store.name} from the run in {owner.run_folder}")
            self._store.put_bytes(encode_json(self._me), OWNER)
        self._require_mine(self._read())
        self._is_claimed = True

    def _require_mine(self, owner: Owner | None) -> None:
        where = owner.run_folder if owner else "another folder"
        require(
            owner is not None and owner.start == self._me.start,
            f"{self._store.name} has just been claimed by the run in {where}; give each run another {_option()}",
        )

    def _require_same(self, before: Computation | None, who: str) -> None:
        difference = before and self._computation.difference(before)
        if difference:
            raise UserError(
                f"{self._store.name}: {difference.what} of the run that {who}; {difference.remedy} to resume it, or "
                f"another run folder and another {_option()}"
            )

    def _read(self) -> Owner | None:
        content = self._store.read(OWNER)
        try:
            return None if content is None else decode_json(content, Owner)
        except BadJson as error:
            raise UserError(
                f"{OWNER} in {self._store.name} is damaged ({error}); remove it if no other run uses that folder"
            ) from error


def _option() -> str:
    return key(CheckpointConfig, "mirror")
