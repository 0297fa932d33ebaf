"""The pictures of a probe: `RUN/pictures/`, written as a whole beside its results, and attention in TensorBoard."""

from pathlib import Path

from evaluation.pictures.attention import write_attention
from evaluation.pictures.attention_by_epoch import attention_picture
from evaluation.pictures.embedded_images import embedded_images
from evaluation.pictures.embeddings import embeddings
from evaluation.pictures.explainer import NoMap
from evaluation.pictures.faults import write_faults
from evaluation.pictures.picture_folder import PictureFolder
from evaluation.pictures.probed import Probed
from evaluation.pictures.projector import write_projector
from evaluation.results.embedding_records import EMBEDDINGS
from evaluation.results.picture_records import FOLDER, write_pictures_record
from evaluation.scoring.tensorboard_curves import Curves, probe_events
from infra.storage.files import atomic_folder, remove_folder, remove_remains


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


def show_attention(probed: Probed, curves: Curves, shown: set[int]) -> None:
    """Show the attention of the checkpoints in TensorBoard; a network without maps has none.

    Args:
        probed: the probe
        curves: the events to write to
        shown: the steps that are shown already; grows
    """
    task = probed.primary.task
    for case in probed.cases:
        if case.kind == "checkpoint" and case.task is task and case.step is not None and case.step not in shown:
            shown.add(case.step)  # before, because a checkpoint that retention has removed meanwhile is not tried again
            try:
                picture = attention_picture(probed, case)
            except NoMap:
                return
            curves.show_picture(f"probe/{case.key.dataset}/{case.key.preset}/attention", picture, case.step)
