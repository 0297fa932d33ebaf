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
from ssl_core.views.parameters import GRAY, ViewParameters
from ssl_core.views.spec import SECOND
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
        sizes = np.stack([view.reduced_px for view in batch.views], axis=1)  # (n, views, 2)
        items, encoded, rows = batch.siblings
        shown = [list(range(len(batch.views)))] * len(batch.encoded)  # the views that show each sample
        for item in items:
            shown[item] = [view for view in shown[item] if view != SECOND]
        siblings = images.map(self._warp, encoded, rows, matrices[items], sizes[items], [[SECOND]] * len(items))
        outcomes = list(images.map(self._warp, batch.encoded, batch.rows, matrices, sizes, shown))
        reasons = {position: image for position, image in enumerate(outcomes) if isinstance(image, str)}
        for item, sibling in zip(items.tolist(), siblings, strict=True):
            if isinstance(sibling, str):
                reasons[len(outcomes) + item] = sibling
            outcomes[item] = _with_second(outcomes[item], sibling)
        decoded = np.array([isinstance(image, list) for image in outcomes], np.bool_)
        blank = [torch.zeros(1, size_px, size_px, device=self.task.device) for size_px in self.task.sizes_px]
        warped = zip(*(image if isinstance(image, list) else blank for image in outcomes), strict=True)
        views = [self._finish(torch.stack(pixels), view) for pixels, view in zip(warped, batch.views, strict=True)]
        return ViewBatch(blank_out(views, decoded), decoded, reasons)

    def _warp(
        self, encoded: UInt8 | None, row: np.void, matrices: Float32, sizes: Float32, views: list[int]
    ) -> list[torch.Tensor] | str | None:
        """Warp an image for some of the views: (1, size, size) each, or why it does not decode; None for a blank."""
        if encoded is None:
            return None
        decoded = _decode(encoded, int(row["height"]), int(row["width"]))
        if isinstance(decoded, str):
            return decoded
        device, sizes_px = self.task.device, self.task.sizes_px
        image = torch.from_numpy(decoded).to(device)[None]
        if not self.task.steps.antialias and not self.task.small_sizes_px:
            return list(warp(image, matrices[views], self.task.size_px))
        warped = []
        for view in views:
            height, width = sizes[view].astype(int).tolist()
            reduced = torch.from_numpy(reduce(decoded, height, width)).to(device)[None] if height else image
            warped.append(warp(reduced, matrices[[view]], sizes_px[view])[0])
        return warped

    def _finish(self, pixels: torch.Tensor, view: ViewParameters) -> torch.Tensor:
        task = self.task
        pixels = blur(pixels, view.blur_sigma_px)
        if task.steps.are_linear:
            gain, offset = (_for_images(values, task.device) for values in view.gain_and_offset(task.mean, task.std))
            pixels = pixels * gain + offset
        else:
            pixels = (self._tone(pixels / 255, view) - task.mean) / task.std
        return erase(pixels, view.erased_px) if task.steps.erase else pixels

    def _tone(self, values: torch.Tensor, view: ViewParameters) -> torch.Tensor:
        """Change the values (N, 1, S, S), from 0 to 1, by gamma, contrast and brightness."""
        steps, device = self.task.steps, self.task.device
        if steps.gamma:
            values = values ** _for_images(view.gamma, device)
        pivot = values.mean(dim=(1, 2, 3), keepdim=True) if steps.contrast_about_mean else GRAY
        values = pivot + _for_images(view.contrast, device) * (values - pivot)
        values = values.clamp(0, 1) if steps.clip else values
        values = _for_images(view.brightness, device) * values
        return values.clamp(0, 1) if steps.clip else values


def _for_images(values: Float32, device: torch.device) -> torch.Tensor:
    """Return one value for each image (N,) so that it broadcasts over images (N, 1, S, S)."""
    return torch.from_numpy(values).to(device).view(-1, 1, 1, 1)


def _with_second(
    views: list[torch.Tensor] | str | None, second: list[torch.Tensor] | str | None
) -> list[torch.Tensor] | None:
    """Insert the second view into the other views of a sample; None if an image did not decode."""
    if not isinstance(views, list) or not isinstance(second, list):
        return None
    return [*views[:SECOND], *second, *views[SECOND:]]


def _decode(encoded: UInt8, height: int, width: int) -> Float32 | str:
    """Decode to gray levels (H, W), or return why not.

    Pillow decodes, because torchvision 0.29 deprecates its own decoders.
    """
    reason = header_problem(encoded, height, width)
    if reason is not None:
        return reason
    try:
        with Image.open(BytesIO(encoded.data), formats=FORMATS) as image:
            if image.size != (width, height):  # a JPEG may declare a second size, which the check does not see
                return f"it declares {image.width} x {image.height} px too"
            return np.array(image.convert("L"), np.float32)
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
        return first_line(error)


def reduce(image: Float32, height: int, width: int) -> Float32:
    """Reduce one image (H, W) without aliasing to (height, width).

    Pillow and torchvision leave out what is beyond the border. So Pillow gets the image with its border repeated, and
    the box of the image itself, beyond which it reads.
    """
    beyond = int(np.ceil(max(image.shape[0] / height, image.shape[1] / width)))
    padded = Image.fromarray(np.pad(image, beyond, mode="edge"))
    box = (beyond, beyond, beyond + image.shape[1], beyond + image.shape[0])
    return np.array(padded.resize((width, height), Image.Resampling.BILINEAR, box=box))


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


def erase(pixels: torch.Tensor, rectangles: Float32) -> torch.Tensor:
    """Set a rectangle of each of N images (N, 1, S, S) to 0; rectangles: (N, 4) left, top, width and height."""
    left, top, width, height = torch.from_numpy(rectangles).to(pixels.device).T.view(4, -1, 1)
    places = torch.arange(pixels.shape[-1], device=pixels.device)  # (S,)
    in_columns = (places >= left) & (places < left + width)  # (N, S)
    in_rows = (places >= top) & (places < top + height)
    return pixels.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)
