import hashlib
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from ssl_core.checkpoints.tensor_file import write_tensors

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(kinds=st.dictionaries(st.text(max_size=8), st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=6))
def test_bytes_are_those_that_safetensors_writes(
    tmp_path: Path, kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]]
) -> None:
    kinds.pop("__metadata__", None)
    tensors = {name: (torch.randn(shape) * 9).to(dtype) for name, (dtype, shape) in kinds.items()}
    path = tmp_path / "tensors"
    record = write_tensors(path, tensors)
    content = path.read_bytes()
    assert content == save(tensors)
    assert record.size_bytes == len(content)
    assert record.sha256 == hashlib.sha256(content).hexdigest()


def test_tensors_of_another_memory_format_are_written_in_row_major_order(tmp_path: Path) -> None:
    tensors = {
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 4).t(),
        "part": torch.randn(6, 6)[1:3, 2:4],
    }
    write_tensors(tmp_path / "tensors", tensors)
    result = load_file(tmp_path / "tensors")
    assert all(torch.equal(result[name], tensor) for name, tensor in tensors.items())
