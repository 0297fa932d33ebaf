"""The loaders that `loader.py` measures: endless iterators of batches, with one float32 tensor (n, 1, S, S) per view.

All of them decode the same images to gray and draw two views with the ranges of `ViewSpec`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler

from sharding.reading.order import SampleOrder
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import sample_batches
from ssl_core.views import ViewInputs, ViewTask, build_view_executor
from ssl_core.views.batches import training_batches
from ssl_core.views.drawing import draw_views
from ssl_core.views.second_images import siblings_of
from ssl_core.views.spec import VIEWS, ViewSpec

Batches = Iterator[list[torch.Tensor]]

_ENDLESS: Final = 10**6  # batches
_EXTENSIONS: Final = "jpg;png"  # both webdataset and DALI separate alternatives in this way


@dataclass(frozen=True)
class Task:
    """The images to load, and how; `shards` is a packed folder, `scratch` a folder for the formats of peers."""

    shards: Path
    scratch: Path
    size_px: int
    local_batch: int
    cpus: int
    device: str

    @property
    def spec(self) -> ViewSpec:
        """The views' ranges."""
        return ViewSpec(size_px=self.size_px)

    @property
    def tars(self) -> list[str]:
        """The shards' paths."""
        return [str(path) for path in sorted(self.shards.glob("*.tar"))]


def sternum(executor: str, task: Task, **options: Any) -> Batches:
    """Return our batches, as a training run with these options of `ViewSpec` uses them."""
    shards, order = _order(task)
    spec = replace(task.spec, **options)
    batches = training_batches(
        shards,
        order,
        spec,
        seed=0,
        siblings=siblings_of(spec, shards, 0),
        view_executor=executor,
        device=task.device,
        threads=task.cpus,
    )
    return (batch.views for batch in batches)


def limit(executor: str, task: Task, **options: Any) -> Batches:
    """Return the views of the executor alone: nothing is read, ordered, verified or drawn."""
    shards, order = _order(task)
    spec = replace(task.spec, **options)
    siblings = siblings_of(spec, shards, 0)
    stream = sample_batches(shards, order, siblings=siblings)
    encoded = list(islice(stream, order.first_step_after_epoch(0)))
    stream.close()
    inputs = [
        ViewInputs(b.encoded, b.rows, draw_views(spec, 0, b.rows, b.epochs, b.second_rows), b.siblings) for b in encoded
    ]
    views = ViewTask(
        task.size_px,
        VIEWS,
        shards.pixel_mean,
        shards.pixel_std,
        task.local_batch,
        torch.device(task.device),
        threads=task.cpus,
        siblings=siblings is not None,
    )
    view_executor = build_view_executor(executor, views)
    return (batch.views for batch in view_executor.run(cycle(inputs)))


def _order(task: Task) -> tuple[ShardSet, SampleOrder]:
    shards = ShardSet([task.shards])
    lanes = 64 if task.local_batch % 64 == 0 else task.local_batch
    return shards, SampleOrder(shards.shard_samples, lanes, task.local_batch, 16384, seed=0)


class _TwoViews:
    """SimCLR's usual augmentations by torchvision's transforms, with our ranges, twice for each image."""

    def __init__(self, task: Task, mean: float, std: float) -> None:
        from torchvision.transforms import InterpolationMode, v2  # noqa: PLC0415 - only in the workers that need it

        spec = task.spec
        taps = 2 * round(3 * spec.blur_sigma_px[1]) + 1
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(spec.size_px, spec.crop_area, spec.crop_aspect),
                v2.RandomHorizontalFlip(spec.flip_probability),
                v2.RandomRotation(spec.rotation_degrees, InterpolationMode.BILINEAR),
                v2.RandomApply([v2.GaussianBlur(taps, spec.blur_sigma_px)], spec.blur_probability),
                v2.ColorJitter(spec.brightness, spec.contrast),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([mean], [std]),
            ]
        )

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        return [self.transform(image).as_subclass(torch.Tensor) for _ in range(VIEWS)]

    def of_bytes(self, content: bytes) -> list[torch.Tensor]:
        """Decode an image, then draw its views."""
        with Image.open(BytesIO(content)) as image:
            return self(image.convert("L"))


class _Files(torch.utils.data.Dataset[list[torch.Tensor]]):
    """A folder of image files, as torchvision's ImageFolder would read it."""

    def __init__(self, paths: list[Path], views: _TwoViews) -> None:
        self.paths, self.views = paths, views

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return self.views.of_bytes(self.paths[index].read_bytes())


def torchvision_files(task: Task) -> Batches:
    """Read image files by Pillow and torchvision's transforms, in the workers of a DataLoader."""
    shards = ShardSet([task.shards])
    folder = task.scratch / "files"
    folder.mkdir()
    for number, content in enumerate(_contents(shards)):
        (folder / f"{number:06d}.img").write_bytes(content)
    files = _Files(sorted(folder.iterdir()), _views(task, shards))
    sampler = RandomSampler(files, num_samples=_ENDLESS * task.local_batch)  # a new shuffle for every pass
    return _on_device(task, _data_loader(task, files, sampler=sampler))


def webdataset_tars(task: Task) -> Batches:
    """Read our shards by webdataset: its shuffle and its decoding in the workers of its loader."""
    import webdataset  # noqa: PLC0415 - a peer, imported only where it runs

    views = _views(task, ShardSet([task.shards]))
    dataset = (
        webdataset.WebDataset(task.tars, resampled=True, shardshuffle=False)  # resampled shards come shuffled
        .shuffle(1000)
        .decode("pill")
        .to_tuple(_EXTENSIONS)
        .map_tuple(views)
        .map(_only)
    )
    loader = webdataset.WebLoader(dataset, batch_size=task.local_batch, num_workers=task.cpus, **_pinned(task))
    return _on_device(task, loader)


def _only(sample: tuple[Any]) -> Any:
    return sample[0]


def streaming_shards(task: Task) -> Batches:
    """Read the same images from mosaicml-streaming's format, by its dataset in the workers of a DataLoader."""
    from streaming import MDSWriter, StreamingDataset  # noqa: PLC0415 - a peer, imported only where it runs
    from streaming.base.util import clean_stale_shared_memory  # noqa: PLC0415

    shards = ShardSet([task.shards])
    folder = task.scratch / "mds"
    with MDSWriter(out=str(folder), columns={"image": "bytes"}, size_limit=1 << 26) as writer:
        for content in _contents(shards):
            writer.write({"image": content})
    views = _views(task, shards)

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            return views.of_bytes(super().__getitem__(index)["image"])

    clean_stale_shared_memory()  # left by a killed run
    batches = 10**5 // task.local_batch + 1  # it plans a whole epoch in memory, so the epoch cannot be endless
    images = Images(local=str(folder), shuffle=True, batch_size=task.local_batch, epoch_size=batches * task.local_batch)
    return _on_device(task, _data_loader(task, images))


def dali_operators(task: Task) -> Batches:
    """Use DALI as solo-learn does: its reader, random numbers and torch iterator, one operator per augmentation.

    This is faster than solo-learn: one channel instead of three, a window that fits the blur instead of 23 taps, and no
    second branch for images without blur.
    """
    from nvidia.dali import fn, pipeline_def, types  # noqa: PLC0415 - takes a second, only where it runs
    from nvidia.dali.plugin.pytorch import DALIGenericIterator  # noqa: PLC0415

    shards, spec = ShardSet([task.shards]), task.spec
    on_gpu = task.device != "cpu"

    def view(images: Any) -> Any:
        images = fn.random_resized_crop(
            images,
            size=[spec.size_px, spec.size_px],
            random_area=list(spec.crop_area),
            random_aspect_ratio=list(spec.crop_aspect),
        )
        angle = fn.random.uniform(range=[-spec.rotation_degrees, spec.rotation_degrees])
        images = fn.rotate(images, angle=angle, keep_size=True, fill_value=0)
        chosen = fn.random.coin_flip(probability=spec.blur_probability, dtype=types.INT32)
        sigma = chosen * fn.random.uniform(range=list(spec.blur_sigma_px)) + 1e-3  # 1e-3: as good as no blur
        images = fn.gaussian_blur(images, sigma=sigma)
        images = fn.brightness_contrast(
            images,
            brightness=fn.random.uniform(range=[1 - spec.brightness, 1 + spec.brightness]),
            contrast=fn.random.uniform(range=[1 - spec.contrast, 1 + spec.contrast]),
        )
        return fn.crop_mirror_normalize(
            images,
            mirror=fn.random.coin_flip(probability=spec.flip_probability),
            mean=[255 * shards.pixel_mean],
            std=[255 * shards.pixel_std],
            output_layout="CHW",
        )

    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=task.local_batch, num_threads=task.cpus, device_id=0 if on_gpu else None, seed=0
    )
    def pipeline() -> Any:
        encoded = fn.readers.webdataset(paths=task.tars, ext=[_EXTENSIONS], random_shuffle=True)
        images = fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu", output_type=types.GRAY)
        return tuple(view(images) for _ in range(VIEWS))

    names = [f"view-{number}" for number in range(VIEWS)]
    for (batch,) in DALIGenericIterator([pipeline()], names, size=-1):  # -1: without end
        yield [batch[name] for name in names]


def _contents(shards: ShardSet) -> Iterator[bytes]:
    for shard, samples in enumerate(shards.shard_samples):
        for row in range(samples):
            yield shards.read(shard, row).tobytes()


def _views(task: Task, shards: ShardSet) -> _TwoViews:
    return _TwoViews(task, shards.pixel_mean, shards.pixel_std)


def _pinned(task: Task) -> dict[str, Any]:
    return {"pin_memory": task.device != "cpu"}


def _data_loader(task: Task, dataset: Any, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, task.local_batch, num_workers=task.cpus, drop_last=True, **_pinned(task), **options)


def _on_device(task: Task, loader: Any) -> Batches:
    return ([view.to(task.device, non_blocking=True) for view in views] for views in loader)


WAYS: Final[dict[str, Callable[[Task], Batches]]] = {
    "sternum, DALI": partial(sternum, "dali"),
    "sternum, DALI, siblings of a study": partial(sternum, "dali", second_from="same_study"),
    "sternum, DALI, siblings of a patient": partial(sternum, "dali", second_from="same_patient"),
    "its limit, DALI": partial(limit, "dali"),
    "its limit, DALI, siblings of a patient": partial(limit, "dali", second_from="same_patient"),
    "sternum, torchvision": partial(sternum, "torchvision"),
    "sternum, torchvision, siblings of a study": partial(sternum, "torchvision", second_from="same_study"),
    "sternum, torchvision, siblings of a patient": partial(sternum, "torchvision", second_from="same_patient"),
    "its limit, torchvision": partial(limit, "torchvision"),
    "sternum, DALI, antialias": partial(sternum, "dali", antialias=True),
    "sternum, torchvision, antialias": partial(sternum, "torchvision", antialias=True),
    "torchvision + DataLoader": torchvision_files,
    "webdataset": webdataset_tars,
    "mosaicml-streaming": streaming_shards,
    "DALI, separate operators": dali_operators,
}
# Modules that a loader needs beyond those of the base install, and how to get them.
NEEDS: Final = {name: ("nvidia.dali", "pip install nvidia-dali-cuda130") for name in WAYS if "DALI" in name} | {
    "webdataset": ("webdataset", "pip install webdataset"),
    "mosaicml-streaming": ("streaming", "pip install mosaicml-streaming"),
}
