"""What the host of one rank computes in a step, beside launching kernels, at any number of ranks.

draw     the parameters of both views of its images
parse    the header of each image
feed     bytes and parameters into DALI
agree    the numbers of samples and the identities of all ranks: which samples are related
places   the positions of the rows of all ranks, where a masked sample has changed them

The other ranks are simulated: a gather returns as much as that many ranks would send, so the network's time is not in
the figures. Times are those of this thread on the CPU, the least of the repeats, so other programs hardly matter.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import count, repeat
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.common import machine, table
from infra.arrays import UInt8
from infra.storage.files import write_atomic
from sharding.format.manifest import INDEX_ROW
from ssl_core.loss import agreement
from ssl_core.loss.agreement import Identities, agree, lay_out_rows
from ssl_core.loss.ntxent import LossConfig
from ssl_core.views.drawing import draw_views
from ssl_core.views.header_check import header_problem
from ssl_core.views.spec import ViewSpec

_SIDE_PX: Final = 320
_CPU: Final = torch.device("cpu")


def least_ms(action: Callable[[], object], repeats: int) -> float:
    """Return the least time of a call on this thread, after one that warms up."""
    times_ms = []
    for _ in range(repeats + 1):
        began_s = time.thread_time()
        action()
        times_ms.append((time.thread_time() - began_s) * 1000)
    return round(min(times_ms[1:]), 3)


def of_images(images: int, repeats: int) -> dict[str, float]:
    """Return the milliseconds that depend on this rank's images alone."""
    encoded = _radiograph()
    rows = np.zeros(images, INDEX_ROW)
    rows["sample"], rows["height"], rows["width"] = np.arange(images), _SIDE_PX, _SIDE_PX
    epochs, spec = np.zeros(images, np.int64), ViewSpec()
    figures = {
        "draw": least_ms(lambda: draw_views(spec, 0, rows, epochs), repeats),
        "parse": least_ms(lambda: [header_problem(encoded, _SIDE_PX, _SIDE_PX) for _ in range(images)], repeats),
    }
    figures["feed"] = _feed_ms([encoded] * images, repeats)
    return figures


def _feed_ms(encoded: list[UInt8], repeats: int) -> float:
    """Return the time in which DALI takes a batch and returns it as it is."""
    from nvidia.dali import fn, pipeline_def, types  # noqa: PLC0415 - an extra

    matrices = np.zeros((len(encoded), 2, 3), np.float32)
    numbers = np.zeros(len(encoded), np.float32)
    batch = [encoded, *[matrices, numbers, numbers, numbers] * 2]  # two views, each with blur, gain and offset
    dtypes = [types.UINT8, *[types.FLOAT] * 8]

    @pipeline_def(batch_size=len(encoded), num_threads=1, device_id=None, exec_dynamic=True)  # type: ignore[untyped-decorator]
    def graph() -> Any:
        inputs = fn.external_source(
            source=repeat(batch), num_outputs=9, batch=True, dtype=dtypes, ndim=[1, *[2, 0, 0, 0] * 2]
        )
        return tuple(inputs)

    pipeline = graph()
    pipeline.build()
    return least_ms(pipeline.run, repeats)


def of_ranks(world: int, images: int, repeats: int) -> dict[str, float]:
    """Return the milliseconds that depend on the number of ranks."""
    sample = torch.arange(images)
    identities = Identities(sample, sample, sample)
    shares = count()
    with simulated_ranks(world, images):
        return {
            "agree": least_ms(lambda: agree(images, LossConfig(), identities), repeats),
            "places": least_ms(lambda: lay_out_rows([images - next(shares), *[images] * (world - 1)], _CPU), repeats),
        }


@contextmanager
def simulated_ranks(world: int, images: int) -> Iterator[None]:
    """Let gathers return what this number of ranks with so many images each would have sent, all of other samples."""
    others = torch.randperm(world * images, generator=torch.Generator().manual_seed(0))[:, None] * 2**40

    def gather_equal(values: Tensor) -> Tensor:
        return values.expand(world, *values.shape)

    def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
        return others.expand(-1, rows.shape[1])

    simulated: dict[str, object] = {"gather_equal": gather_equal, "gather_rows": gather_rows}
    real = {name: getattr(agreement, name) for name in simulated}
    for name, gather in simulated.items():
        setattr(agreement, name, gather)
    try:
        yield
    finally:
        for name, gather in real.items():
            setattr(agreement, name, gather)


def _radiograph() -> UInt8:
    """Return a gray JPEG about as large as that of a radiograph of this size."""
    x = torch.linspace(-2, 2, _SIDE_PX)
    shade = 128 + 80 * torch.cos(x)[:, None] * torch.cos(2 * x)
    grain = 6 * torch.randn(_SIDE_PX, _SIDE_PX, generator=torch.Generator().manual_seed(0))
    content = BytesIO()
    Image.fromarray((shade + grain).clamp(0, 255).byte().numpy()).save(content, "JPEG", quality=90)
    return np.frombuffer(content.getvalue(), np.uint8)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 8, 128, 1024], help="numbers of ranks")
    parser.add_argument("--images", type=int, default=256, help="images of a rank in a step")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    own = of_images(options.images, options.repeats)
    figures = [
        {"world": world, "milliseconds": own | of_ranks(world, options.images, options.repeats)}
        for world in options.worlds
    ]
    rows = []
    for figure in figures:
        milliseconds = figure["milliseconds"]
        figure["sum_without_places"] = round(sum(milliseconds.values()) - milliseconds["places"], 3)
        rows.append([str(figure["world"]), *map(str, milliseconds.values()), str(figure["sum_without_places"])])
    print(table(["ranks", *figures[0]["milliseconds"], "a usual step, ms"], rows))
    content = {
        "images": options.images,
        "repeats": options.repeats,
        "figures": figures,
        "machine": machine("torch", "numpy", "nvidia-dali-cuda130"),
    }
    write_atomic(options.out, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
