"""TensorBoard's embedding projector: features to turn and search, each point with its thumbnail and labels.

The files are those of SummaryWriter.add_embedding, in the folder in which TensorBoard looks for a run's projector.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from google.protobuf.text_format import MessageToString
from PIL import Image
from sklearn.decomposition import PCA
from tensorboard.plugins.projector.metadata import PLUGIN_ASSETS_NAME, PLUGINS_DIR, PROJECTOR_FILENAME
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from evaluation.pictures.embedded_images import EmbeddedImages
from evaluation.pictures.picture_folder import PictureFolder
from evaluation.pictures.radiographs import radiographs
from infra.arrays import Float32, UInt8
from infra.storage.files import atomic_folder

THUMBNAIL_PX: Final = 48
_COMPONENTS: Final = 50  # of the features; the browser loads them as text
_COLUMNS: Final = ("class", "key", "patient", "view", "sex", "age")
_UNKNOWN: Final = "unknown"


def write_projector(run_of_tensorboard: Path, images: Sequence[EmbeddedImages], pictures: PictureFolder) -> None:
    """Write the projector's files below the folder of a run of TensorBoard, in place of earlier ones.

    Args:
        run_of_tensorboard: folder with event files
        images: the images of each set, with their features
        pictures: reads the images

    Raises:
        RunFailed: if an image is damaged
        UserError: if the disk is full or not writable
    """
    plugins = run_of_tensorboard / PLUGINS_DIR
    plugins.mkdir(parents=True, exist_ok=True)
    config = ProjectorConfig()
    with atomic_folder(plugins / PLUGIN_ASSETS_NAME) as folder:
        for number, of_set in enumerate(images):
            (folder / f"{number}-labels.tsv").write_text(_labels(of_set), "utf-8")
            Image.fromarray(sprite(_thumbnails(of_set, pictures))).save(folder / f"{number}-thumbnails.png")
            for place, (network, features) in enumerate(of_set.features.items()):
                shown = principal_components(features)
                np.savetxt(folder / f"{number}-{place}-features.tsv", shown, "%.4g", delimiter="\t")
                info = config.embeddings.add()
                info.tensor_name = f"{of_set.task.record.label}, {network.name}"
                info.tensor_shape.extend(shown.shape)
                info.tensor_path = f"{number}-{place}-features.tsv"
                info.metadata_path = f"{number}-labels.tsv"
                info.sprite.image_path = f"{number}-thumbnails.png"
                info.sprite.single_image_dim.extend([THUMBNAIL_PX, THUMBNAIL_PX])
        (folder / PROJECTOR_FILENAME).write_text(MessageToString(config), "utf-8")


def principal_components(features: Float32) -> Float32:
    """Return the first 50 principal components (n, 50) of features (n, D), fewer if there are fewer."""
    components = min(_COMPONENTS, *features.shape)
    with np.errstate(invalid="ignore"):  # PCA divides by the variance, which equal features lack
        values: Float32 = PCA(components, random_state=0).fit_transform(features)
    return values


def _labels(images: EmbeddedImages) -> str:
    """Return the table of labels, one line for each image below the names of the columns."""
    record, samples = images.task.record, images.task.labeled_set.samples
    lines: list[Iterable[object]] = [_COLUMNS]
    for row, positive in zip(images.rows.tolist(), images.classes.tolist(), strict=True):
        lines.append(
            (
                record.positive if positive else record.negative,
                samples.keys[row],
                f"{samples.patient_ids[row]:016x}",
                samples.views[row],
                samples.sexes[row],
                samples.ages[row],
            )
        )
    return "".join("\t".join(map(_cell, line)) + "\n" for line in lines)


def _cell(value: object) -> str:
    """Return a value as text without tabs and line ends."""
    return _UNKNOWN if value is None else " ".join(str(value).split())


def _thumbnails(images: EmbeddedImages, folder: PictureFolder) -> UInt8:
    """Return the gray levels (n, 48, 48) of the images, framed as the probe frames them."""
    packed_order = np.argsort(images.rows)
    gray = np.empty((len(images.rows), THUMBNAIL_PX, THUMBNAIL_PX), np.uint8)
    gray[packed_order] = list(
        radiographs(folder.extractor, images.task.labeled_set, images.rows[packed_order], THUMBNAIL_PX)
    )
    return gray


def sprite(pictures: UInt8) -> UInt8:
    """Return pictures (n, h, w) side by side in a square of cells, row by row; cells that are left are black."""
    count, height, width = pictures.shape
    side = math.isqrt(count - 1) + 1
    cells = np.zeros((side * side, height, width), np.uint8)
    cells[:count] = pictures
    return cells.reshape(side, side, height, width).swapaxes(1, 2).reshape(side * height, side * width)
