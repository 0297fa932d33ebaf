"""The view executor on torch and Pillow, for machines without DALI, and as the reference in DALI's tests."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from typing_extensions import override

from infra.arrays import Float32, UInt8
from sharding.images.encode import DECODER_ERRORS, FORMATS
from ssl_core.views.header_check import header_problem
from ssl_core.views.spec import ViewParameters
from ssl_core.views.task import ViewBatch, ViewExecutor, ViewInputs, blank_out, first_line, until_failure

_IN_FLIGHT: Final = 2


class TorchvisionExecutor(ViewExecutor):
    """Decodes on the CPU with the task's threads; warps, blurs and jitters on the task's device."""

    @override
    def run(self, batches: Iterator[ViewInputs]) -> Generator[ViewBatch, None, None]:
        failures: list[Exception] = []  # of `batches`, raised once the batches in flight have come out
        in_flight: deque[Future[ViewBatch]] = deque()
        images = ThreadPoolExecutor(self.task.threads, "decode-image")
        maker = ThreadPoolExecutor(1, "make-views")  # passes one batch after the other to `images`
        try:
            for batch in until_failure(batches, failures):
                in_flight.append(maker.submit(self._make, batch, images))
                if len(in_flight) > _IN_FLIGHT:
                    yield in_flight.popleft().result()
            while in_flight:
                yield in_flight.popleft().result()
        finally:
            maker.shutdown(cancel_futures=True)
            images.shutdown()
        if failures:
            raise failures[0]

    def _make(self, batch: ViewInputs, images: ThreadPoolExecutor) -> ViewBatch:
        matrices = np.stack([view.matrix for view in batch.views], axis=1)  # (n, views, 2, 3)
        outcomes = list(images.map(self._warp, batch.encoded, batch.rows, matrices))
        decoded = np.array([isinstance(image, torch.Tensor) for image in outcomes], np.bool_)
        reasons = {position: image for position, image in enumerate(outcomes) if isinstance(image, str)}
        task = self.task
        blank = torch.zeros(len(batch.views), 1, task.size_px, task.size_px, device=task.device)
        warped = torch.stack([image if isinstance(image, torch.Tensor) else blank for image in outcomes], dim=1)
        views = [self._finish(pixels, view) for pixels, view in zip(warped, batch.views, strict=True)]
        return ViewBatch(blank_out(views, decoded), decoded, reasons)

    def _warp(self, encoded: UInt8 | None, row: np.void, matrices: Float32) -> torch.Tensor | str | None:
        """Warp an image by its matrices: (views, 1, size, size), or why it does not decode; None for a blank."""
        if encoded is None:
            return None
        image = _decode(encoded, int(row["height"]), int(row["width"]))
        return image if isinstance(image, str) else warp(image.to(self.task.device), matrices, self.task.size_px)

    def _finish(self, pixels: torch.Tensor, view: ViewParameters) -> torch.Tensor:
        gain, offset = (
            torch.from_numpy(values).to(self.task.device).view(-1, 1, 1, 1)
            for values in view.gain_and_offset(self.task.mean, self.task.std)
        )
        return blur(pixels, view.blur_sigma_px) * gain + offset


def _decode(encoded: UInt8, height: int, width: int) -> torch.Tensor | str:
    """Decode to gray levels (1, H, W), or return why not.

    Pillow decodes, because torchvision 0.29 deprecates its own decoders.
    """
    reason = header_problem(encoded, height, width)
    if reason is not None:
        return reason
    try:
        with Image.open(BytesIO(encoded.data), formats=FORMATS) as image:
            if image.size != (width, height):  # a JPEG may declare a second size, which the check does not see
                return f"it declares {image.width} x {image.height} px too"
            return torch.from_numpy(np.array(image.convert("L"), np.float32))[None]
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
        return first_line(error)


def warp(image: torch.Tensor, matrices: Float32, size_px: int) -> torch.Tensor:
    """Warp one image (1, H, W) by each of V matrices (V, 2, 3): (V, 1, size, size), in the image's units."""
    _, height, width = image.shape
    # From pixels to affine_grid's coordinates, where -1 and 1 are the outer borders of view and image.
    to_unit = np.array([[2 / width], [2 / height]])
    linear = matrices[:, :, :2].astype(np.float64) * (size_px / 2)
    shift = matrices[:, :, 2:] + linear.sum(axis=2, keepdims=True)
    theta = np.concatenate([linear * to_unit, shift * to_unit - 1], axis=2).astype(np.float32)
    shape = [len(matrices), 1, size_px, size_px]
    grid = F.affine_grid(torch.from_numpy(theta).to(image.device), shape, align_corners=False)
    stack = image.expand(len(matrices), 1, height, width)
    return F.grid_sample(stack, grid, mode="bilinear", padding_mode="border", align_corners=False)


def blur(pixels: torch.Tensor, sigma_px: Float32) -> torch.Tensor:
    """Blur each of N images (N, 1, S, S) by its own sigma; sigma 0 leaves an image unchanged.

    As in DALI, the kernel reaches to ceil(3 sigma) and the border is mirrored about its pixels.
    """
    chosen = np.flatnonzero(sigma_px > 0)
    if not len(chosen):
        return pixels
    sigma = sigma_px[chosen, None].astype(np.float64)
    reach = np.ceil(3 * sigma)
    radius = int(reach.max())
    taps = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (taps / sigma) ** 2) * (np.abs(taps) <= reach)  # (n, 2 * radius + 1)
    kernel /= kernel.sum(axis=1, keepdims=True)
    weights = torch.from_numpy(kernel.astype(np.float32)).to(pixels.device)
    rows = torch.from_numpy(chosen).to(pixels.device)
    n = len(chosen)
    x = F.pad(pixels[rows], (radius, radius, radius, radius), mode="reflect")
    x = x.transpose(0, 1)  # (1, n, S + 2 radius, S + 2 radius)
    x = F.conv2d(x, weights.view(n, 1, 1, -1), groups=n)
    x = F.conv2d(x, weights.view(n, 1, -1, 1), groups=n)
    return pixels.index_copy(0, rows, x.transpose(0, 1))
