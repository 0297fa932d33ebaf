"""A writer of safetensors files that computes the hash on the way.

safetensors' own writers either need a second copy of all tensors in memory and hold the interpreter's lock (`save`), or
hide a full disk behind another error and need a second reading for the hash (`save_file`). The format is a JSON
header followed by the bytes; the bytes written here are those of `save`.
"""

import hashlib
import json
from itertools import chain
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ssl_core.checkpoints.checkpoint import FileRecord

# Wide types first, so that every tensor is aligned; otherwise in safetensors' order.
_DTYPES: Final = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER: Final = list(_DTYPES)
_ALIGNMENT: Final = 8  # bytes


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> FileRecord:
    """Write tensors of any device and memory format, one at a time, in row-major order; return size and hash."""
    names = sorted(tensors, key=lambda name: (_ORDER.index(tensors[name].dtype), name))
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("wb") as file:
        for content in chain([_header(names, tensors)], (_bytes(tensors[name]) for name in names)):
            file.write(content)
            digest.update(content)
            size_bytes += len(content)
    return FileRecord(size_bytes, digest.hexdigest())


def _header(names: list[str], tensors: dict[str, Tensor]) -> memoryview:
    """Return the header's length in 8 bytes, little-endian, followed by the header, padded with blanks."""
    entries, start = {}, 0
    for name in names:
        tensor = tensors[name]
        end = start + tensor.nbytes
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return memoryview(len(header).to_bytes(8, "little") + header)


def _bytes(tensor: Tensor) -> memoryview:
    plain = tensor.detach().to("cpu").contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().data
