"""Files of features: Parquet, CSV or NPZ, written part by part, so that they may be larger than the memory."""

import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from evaluation.inference.parts import EmbeddedPart
from infra.errors import require
from infra.extras import require_extra
from infra.storage.files import atomic_file

COLUMNS: Final = ("key", "path", "patient", "dataset", "split", "sha256")  # of an ImageRecord
ABOUT: Final = "sternum"  # the name under which Parquet and NPZ describe backbone and preprocessing


def require_known(out: Path, option: str) -> None:
    """Check the suffix of a file that is about to be written.

    Raises:
        UserError: if it is not that of a known format, or its library is missing
    """
    require(
        out.suffix in _WRITERS, f"{option}={out} must end with {', '.join(_WRITERS)}; try {out.with_suffix('.parquet')}"
    )
    if out.suffix == ".parquet":
        require_extra("parquet", f"{option}={out}", instead="name a .csv or .npz file")


def write_features(out: Path, parts: Iterable[EmbeddedPart], about: dict[str, Any]) -> None:
    """Write the features of all parts, atomically, in the format of the suffix.

    Args:
        out: a .parquet, .csv or .npz file
        parts: one part or more, with features of one size
        about: what describes the backbone, for Parquet and NPZ

    Raises:
        UserError: if the disk is full or not writable
    """
    with atomic_file(out) as file:
        _WRITERS[out.suffix](file, parts, json.dumps(about))


def _write_parquet(file: BinaryIO, parts: Iterable[EmbeddedPart], about: str) -> None:
    """Write one list column of D floats, which polars reads as an array and pandas as arrays of numpy."""
    import pyarrow  # noqa: PLC0415 (an extra)
    from pyarrow import parquet  # noqa: PLC0415

    writer: Any = None
    for part in parts:
        if writer is None:
            fields = [(name, pyarrow.string()) for name in COLUMNS]
            size = part.features.shape[1]
            schema = pyarrow.schema([*fields, ("features", pyarrow.list_(pyarrow.float32(), size))], {ABOUT: about})
            writer = parquet.ParquetWriter(file, schema)
        columns = [pyarrow.array(_column(part, name), pyarrow.string()) for name in COLUMNS]
        features = pyarrow.FixedSizeListArray.from_arrays(part.features.reshape(-1), size)
        writer.write_table(pyarrow.table([*columns, features], schema=schema))
    writer.close()


def _write_csv(file: BinaryIO, parts: Iterable[EmbeddedPart], about: str) -> None:
    text = io.TextIOWrapper(file, "utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    for number, part in enumerate(parts):
        if number == 0:
            writer.writerow([*COLUMNS, *(f"feature_{column}" for column in range(part.features.shape[1]))])
        columns = zip(*(_column(part, name) for name in COLUMNS), strict=True)
        writer.writerows([*cells, *row] for cells, row in zip(columns, part.features.astype(str), strict=True))
    text.flush()
    text.detach()


def _write_npz(file: BinaryIO, parts: Iterable[EmbeddedPart], about: str) -> None:
    """Write arrays of text and of float32; what is unknown is "", since an array of text has no other blank."""
    every = list(parts)
    columns = {name: [value or "" for part in every for value in _column(part, name)] for name in COLUMNS}
    arrays: dict[str, Any] = {name: np.array(column, np.str_) for name, column in columns.items()}
    arrays |= {"features": np.concatenate([part.features for part in every]), ABOUT: np.array(about)}
    np.savez(file, **arrays)


_WRITERS: Final[dict[str, Callable[[BinaryIO, Iterable[EmbeddedPart], str], None]]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".npz": _write_npz,
}


def _column(part: EmbeddedPart, name: str) -> list[str | None]:
    return [getattr(record, name) for record in part.records]
