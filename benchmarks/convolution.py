"""Forward and backward of a backbone with convolutions as matrix products, against torch's own convolutions.

One thread, a batch of one view in training mode. Each repeat runs both in turn; the figures are the medians of the
milliseconds and of their ratio. `layers` compares single convolutions of a ResNet's last stages.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.common import machine, table
from infra.storage.files import write_atomic
from ssl_core.model.cpu_convolution import matrix_conv2d, use_matrix_products
from ssl_core.model.encoder import Backbone

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# channels in and out, kernel size, stride, side of the input map
LAYERS = [
    (512, 512, 3, 1, 1),
    (512, 512, 3, 1, 2),
    (512, 512, 3, 1, 3),
    (256, 512, 3, 2, 4),
    (256, 256, 3, 1, 4),
    (256, 256, 3, 1, 6),
    (128, 128, 3, 1, 8),
    (2048, 1024, 1, 1, 2),
    (1024, 512, 1, 1, 4),
]


def in_turns(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each function, and of `matrix` as a share of `conv2d`."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            start_s = time.perf_counter()
            function()
            if repeat:  # the first time is for warming up
                taken[name].append(1000 * (time.perf_counter() - start_s))
    ratios = [matrix / conv2d for matrix, conv2d in zip(taken["matrix"], taken["conv2d"], strict=True)]
    return {f"{name}_ms": round(median(values), 2) for name, values in taken.items()} | {
        "ratio": round(median(ratios), 3)
    }


def measure_layer(layer: tuple[int, int, int, int, int], dtype: torch.dtype, batch: int, repeats: int) -> Any:
    """Time one convolution, forward and backward."""
    channels, out, size, stride, side = layer
    x = torch.randn(batch, channels, side, side).to(dtype, memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(out, channels, size, size).to(dtype, memory_format=torch.channels_last).requires_grad_()
    dy = torch.randn_like(F.conv2d(x, weight, None, stride, size // 2))
    ways: dict[str, Callable[[], object]] = {
        "conv2d": lambda: torch.autograd.backward(F.conv2d(x, weight, None, stride, size // 2), dy),
        "matrix": lambda: torch.autograd.backward(matrix_conv2d(x, weight, stride, size // 2), dy),
    }
    return in_turns(ways, repeats)


def measure_backbone(name: str, size_px: int, dtype: torch.dtype, batch: int, repeats: int) -> Any:
    """Time a whole backbone, forward and backward, at one size of the views."""
    images = torch.randn(batch, 1, size_px, size_px).to(memory_format=torch.channels_last)

    def step(backbone: Backbone) -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            features = backbone(images)
        torch.autograd.backward(features.float().square().mean())

    plain, fast = (Backbone(name).to(memory_format=torch.channels_last) for _ in range(2))
    use_matrix_products(fast)
    return in_turns({"conv2d": lambda: step(plain), "matrix": lambda: step(fast)}, repeats)


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--backbones", nargs="+", default=["resnet18", "wide_resnet50_2"])
    parser.add_argument("--sizes_px", type=int, nargs="+", default=[32, 64, 96, 128])
    parser.add_argument("--batch", type=int, default=64, help="images of a forward pass")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    figures = [
        {"what": f"{name} at {size_px} px", "dtype": dtype}
        | measure_backbone(name, size_px, DTYPES[dtype], options.batch, options.repeats)
        for name in options.backbones
        for size_px in options.sizes_px
        for dtype in DTYPES
    ]
    figures += [
        {"what": "{0} to {1}, {2} x {2}, stride {3}, side {4}".format(*layer), "dtype": dtype}
        | measure_layer(layer, DTYPES[dtype], options.batch, options.repeats)
        for layer in LAYERS
        for dtype in DTYPES
    ]
    header = ["", "dtype", "conv2d ms", "matrix ms", "ratio"]
    rows = [[str(value) for value in figure.values()] for figure in figures]
    print(table(header, rows))
    units = {
        "conv2d_ms": "milliseconds",
        "matrix_ms": "milliseconds",
        "ratio": "matrix_ms / conv2d_ms, median of turns",
    }
    settings = {"batch": options.batch, "repeats": options.repeats, "threads": 1}
    content = {"units": units, "settings": settings, "machine": machine("torch"), "figures": figures}
    write_atomic(options.out, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
