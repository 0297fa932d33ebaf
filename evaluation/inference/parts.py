"""The finished parts of an embedding: each is a file, so that a killed command continues."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from evaluation.inference.images import ImageRecord
from infra.arrays import Float32
from infra.errors import UserError, require
from infra.log import say
from infra.storage.files import disk_errors, regular_size, remove_folder, write_atomic
from infra.storage.json_files import BadJson, decode_json, encode_line
from sharding.format.manifest import Rejection


@dataclass(frozen=True)
class EmbeddedPart:
    """The features of some images.

    Attributes:
        features: (n, D)
        records: what identifies each of the n images
        refused: the files that are no images
    """

    features: Float32
    records: list[ImageRecord]
    refused: list[Rejection]


@dataclass(frozen=True)
class _Described:
    records: list[ImageRecord]
    refused: list[Rejection]


class PartFolder:
    """A folder of finished parts beside the file that they become, named by what they depend on."""

    def __init__(self, out: Path) -> None:
        self.path = out.with_name(f".{out.name}.parts")

    def has(self, name: str) -> bool:
        """Return whether a part is finished."""
        return self._file(name).is_file()

    def write(self, name: str, part: EmbeddedPart) -> None:
        """Write a part; raises UserError if the disk is full or not writable."""
        described = encode_line(_Described(part.records, part.refused)).decode()
        write_atomic(self._file(name), safetensors.numpy.save({"features": part.features}, {"images": described}))

    def read(self, name: str) -> EmbeddedPart:
        """Read a part; raises UserError if somebody has changed it."""
        path = self._file(name)
        try:
            regular_size(path)
            with safe_open(path, "numpy") as file:
                features, images = file.get_tensor("features"), file.metadata()["images"]
            described = decode_json(images.encode(), _Described)
            fits = (features.dtype, features.ndim, len(features)) == (np.float32, 2, len(described.records))
            require(fits, "its features have another type or shape")
        except (OSError, UserError, SafetensorError, KeyError, TypeError, BadJson) as error:
            raise UserError(f"{path} cannot be read ({error}); delete {self.path} and start again") from error
        return EmbeddedPart(features, described.records, described.refused)

    def keep_only(self, names: Sequence[str]) -> None:
        """Remove the parts of an earlier command with other images or options, and say so."""
        wanted = {self._file(name) for name in names}
        with disk_errors(self.path):
            others = [path for path in self.path.glob("*.safetensors") if path not in wanted]
            for path in others:
                path.unlink()
        if others:
            say(f"{self.path} held {len(others)} parts of other images or options; removed")

    def remove(self) -> None:
        """Remove the folder."""
        with disk_errors(self.path):
            remove_folder(self.path)

    def _file(self, name: str) -> Path:
        return self.path / f"{name[:32]}.safetensors"
