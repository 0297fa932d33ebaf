"""`RUN/pictures/`: the pictures of a finished probe, written as a whole beside its results."""

from pathlib import Path

from evaluation.pictures.attention import write_attention
from evaluation.pictures.embedded_images import embedded_images
from evaluation.pictures.embeddings import embeddings
from evaluation.pictures.faults import write_faults
from evaluation.pictures.picture_folder import PictureFolder
from evaluation.pictures.probed import Probed
from evaluation.pictures.projector import write_projector
from evaluation.results.embedding_records import EMBEDDINGS
from evaluation.results.picture_records import FOLDER, write_pictures_record
from evaluation.scoring.tensorboard_curves import probe_events
from infra.files import atomic_folder, remove_folder, remove_remains


def write_pictures(run: Path, probed: Probed) -> None:
    """Write the pictures of a probe; each kind of picture is one call.

    Args:
        run: the folder of the results
        probed: the probe

    Raises:
        RunFailed: if an image is damaged
        UserError: if the disk is full or not writable
    """
    with atomic_folder(run / FOLDER) as path:
        folder = PictureFolder(path, probed.extractor)
        write_attention(probed, folder)
        write_faults(probed, folder)
        images = embedded_images([case.task for case in probed.cases], probed.features, probed.seed)
        write_pictures_record(path, EMBEDDINGS, embeddings(images))
        write_projector(probe_events(run), images, folder)


def remove_pictures(run: Path) -> None:
    """Remove the pictures of an earlier probe, and what a killed one left, before its results are replaced."""
    remove_remains(run, FOLDER)
    if (run / FOLDER).exists():
        remove_folder(run / FOLDER)
