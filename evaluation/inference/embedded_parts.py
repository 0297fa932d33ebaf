"""The parts of an embedding, computed in this process or by the nodes of a Ray cluster."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import torch

from evaluation.data.features import Preprocessing
from evaluation.inference.embedder import Embedder, build_embedder
from evaluation.inference.images import ImageSource
from evaluation.inference.parts import EmbeddedPart
from infra.errors import UserError
from infra.parallel.workers import Workers
from sharding.images.encode import NOT_READ, can_be_read

_PARTS_A_TASK: Final = 4  # because a task starts processes that prepare image files


def embedded_parts(
    embedder: Embedder, source: ImageSource, numbers: Sequence[int], workers: Workers
) -> Generator[EmbeddedPart]:
    """Yield the parts of these numbers, in ascending order; close it when done.

    Args:
        embedder: the backbone; for a cluster one of `as_on_cluster`
        source: the images
        numbers: numbers of parts
        workers: processes that prepare image files, or the cluster that does all

    Raises:
        UserError: if features are not finite
        RunFailed: if an image does not decode, or a node of the cluster cannot read one that this machine can
    """
    if workers.address is None:
        yield from _parts(embedder, source, workers.processes, numbers)
        return
    tasks = [numbers[first : first + _PARTS_A_TASK] for first in range(0, len(numbers), _PARTS_A_TASK)]
    embed = partial(_parts_on_node, embedder, source)
    with closing(workers.map(embed, tasks, len(tasks), unread=_unread, whole_machines=True)) as results:
        for parts in results:
            yield from parts


def as_on_cluster(embedder: Embedder, address: str) -> Embedder:
    """Return an embedder as the nodes of a cluster have it: what decodes there may differ from this machine.

    Raises:
        UserError: if the cluster cannot be joined
    """
    sent = replace(embedder, backbone=embedder.backbone.cpu(), device=torch.device("cpu"))
    [preprocessing] = Workers(address=address).map(_preprocessing_on_node, [sent], 1, whole_machines=True)
    return replace(sent, preprocessing=preprocessing)


def _parts(embedder: Embedder, source: ImageSource, workers: int, numbers: Sequence[int]) -> Iterator[EmbeddedPart]:
    for part in source.parts(numbers, workers):
        features = embedder.features(part.batches, part.name_of)
        yield EmbeddedPart(features, part.records, part.refused)


def _preprocessing_on_node(sent: Embedder) -> Preprocessing:
    return _on_this_machine(sent).preprocessing


def _parts_on_node(sent: Embedder, source: ImageSource, numbers: Sequence[int]) -> list[EmbeddedPart]:
    here = _on_this_machine(sent)
    if here.preprocessing != sent.preprocessing:
        raise UserError(
            f"it decodes by {here.preprocessing.executor}, another node by {sent.preprocessing.executor}, which gives "
            "other features; name an executor that all have, and use nodes of one kind"
        )
    return list(_parts(here, source, torch.get_num_threads(), numbers))  # Ray sets the threads to the task's share


def _on_this_machine(sent: Embedder) -> Embedder:
    return build_embedder(
        sent.backbone, sent.preprocessing, view_executor=sent.view_executor, local_batch=sent.local_batch
    )


def _unread(_: Sequence[int], parts: Sequence[EmbeddedPart]) -> str | None:
    """Return the first file that a node could not read, although this machine can."""
    refused = (item for part in parts for item in part.refused if item.reason in NOT_READ)
    return next((item.path for item in refused if can_be_read(Path(item.path))), None)
