"""The loss kernels, compiled ahead of time for GPUs that need not be there: registers, spills and shared memory.

A kernel fits a GPU if its shared memory does. `loss.executor=auto` does not choose kernels that do not fit. What spills
runs, but slower.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from benchmarks.common import machine, table
from infra.storage.files import write_atomic

KERNELS: Final = ("forward", "backward")
TYPES: Final = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
# Shared memory that one block may take, by compute capability (CUDA C++ Programming Guide, technical specifications).
SHARED_BYTES: Final = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}


class Compiled(NamedTuple):
    """The resources of one processor that a kernel uses, and its instructions for tensor cores."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    tensor_core_instructions: int


@dataclass(frozen=True)
class Case:
    """What a kernel is compiled for; capability is 90 for sm_90."""

    kernel: str
    capability: int
    width: int
    keyed: bool

    @property
    def name(self) -> str:
        """The name in the table."""
        return f"sm_{self.capability} {self.kernel} d={self.width}{' with keys' if self.keyed else ''}"


def compile_kernel(
    kernel: str, width: int, operands: torch.dtype, keyed: bool, temperature: float, capability: int
) -> Compiled:
    """Compile a kernel with the constants of its launch."""
    import triton  # noqa: PLC0415 - reads TRITON_CACHE_DIR when it is imported
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.compiler import ASTSource  # noqa: PLC0415

    from ssl_core.loss import kernels  # noqa: PLC0415
    from ssl_core.loss.pair_sums import Keys  # noqa: PLC0415

    function = {"forward": kernels.forward_kernel, "backward": kernels.backward_kernel}[kernel]
    blocks = {"forward": kernels.forward_blocks, "backward": kernels.backward_blocks}[kernel](width, operands)
    z = torch.empty(0, width, dtype=operands)
    constants = kernels.constants(z, blocks, Keys(z, z) if keyed else None, temperature)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    pointers = {"z": TYPES[operands], "partner": "i64", "group": "i32" if keyed else "i64"}
    pointers |= {"positive": pointers["group"]} | dict.fromkeys(("partial", "levels", "shares", "lifts"), "fp32")
    numbers = {"start": "i32", "count": "i32", "total": "i32", "stretch": "i32", "sharpness": "fp32"}
    types = {name: f"*{kind}" for name, kind in pointers.items()} | numbers | dict.fromkeys(constants, "constexpr")
    aligned = {(k,): [["tt.divisibility", 16]] for k, name in enumerate(function.arg_names) if name in pointers}
    source = ASTSource(function, {name: types[name] for name in function.arg_names}, constants, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled_bytes = _usage(made.asm["cubin"])
    instructions = re.findall(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma", made.asm["ptx"])
    return Compiled(registers, spilled_bytes, made.metadata.shared, len(instructions))


def _usage(cubin: bytes) -> tuple[int, int]:
    """Return a kernel's registers, and the bytes of its stack and local memory, according to Triton's cuobjdump."""
    import triton  # noqa: PLC0415

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command: list[str | Path] = [tools / "cuobjdump", "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    [registers], memory = re.findall(r"REG:(\d+)", usage), re.findall(r"(?:STACK|LOCAL):(\d+)", usage)
    assert len(memory) == 2, usage
    return int(registers), sum(map(int, memory))


def text(results: dict[Case, Compiled]) -> str:
    """Return the figures as a table."""
    rows = [
        [
            case.name,
            str(made.registers),
            str(made.spilled_bytes),
            f"{made.shared_bytes / 1024:.0f} of {SHARED_BYTES[case.capability] / 1024:.0f}",
            str(made.tensor_core_instructions),
        ]
        for case, made in results.items()
    ]
    return table(["fp16, tau 0.5", "registers", "spilled B", "shared KB", "tensor core"], rows)


def as_json(results: dict[Case, Compiled]) -> dict[str, Any]:
    """Return the content of the JSON file."""
    return {
        "operands": "fp16",
        "temperature": 0.5,
        "kernels": [
            {**asdict(case), **made._asdict(), "fits": made.shared_bytes <= SHARED_BYTES[case.capability]}
            for case, made in results.items()
        ],
        "machine": machine("torch", "triton"),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile all cases, and print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--capabilities", type=int, nargs="+", choices=SHARED_BYTES, default=list(SHARED_BYTES))
    parser.add_argument(
        "--widths", type=int, nargs="+", default=[128, 256, 512], help="numbers in a row, powers of two"
    )
    options = parser.parse_args(arguments)
    results: dict[Case, Compiled] = {}
    with tempfile.TemporaryDirectory(prefix="sternum-kernels-") as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        for capability, width, kernel, keyed in product(options.capabilities, options.widths, KERNELS, (False, True)):
            case = Case(kernel, capability, width, keyed)
            results[case] = compile_kernel(kernel, width, torch.float16, keyed, 0.5, capability)
            print(f"{case.name}: {results[case].registers} registers", flush=True)
    print(text(results))
    write_atomic(options.out, json.dumps(as_json(results), indent=1) + "\n")


if __name__ == "__main__":
    main()
