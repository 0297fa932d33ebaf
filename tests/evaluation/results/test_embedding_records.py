from pathlib import Path

import pytest

from evaluation.results.embedding_records import (
    EMBEDDINGS,
    EMBEDDINGS_VERSION,
    EmbeddedSet,
    EmbeddingMap,
    Embeddings,
    read_embeddings,
)
from evaluation.results.picture_records import FOLDER, write_pictures_record
from infra.errors import UserError


def made(x: list[float], positive: list[int], missing: str = "") -> Embeddings:
    item = EmbeddingMap("epoch 1", "checkpoint", 1.0, 5, missing, x, [2.0, 0.5], 0.9, None)
    of_set = EmbeddedSet("cell", "rigorous", ("NORMAL", "PNEUMONIA"), 1, 2, {}, 10.0, ["a", "b"], positive, [item])
    return Embeddings(EMBEDDINGS_VERSION, "method", "choice", "scores", [of_set])


def test_embeddings_are_read_as_written_and_may_be_absent(tmp_path: Path) -> None:
    assert read_embeddings(tmp_path) is None
    (tmp_path / FOLDER).mkdir()
    embeddings = made([1.0, -3.5], [0, 1])
    write_pictures_record(tmp_path / FOLDER, EMBEDDINGS, embeddings)
    assert read_embeddings(tmp_path) == embeddings


@pytest.mark.parametrize(
    "damaged", [made([1.0], [0, 1]), made([1.0, 2.0], [0]), made([1.0, 2.0], [0, 2]), made([1.0, 2.0], [0, 1], "none")]
)
def test_lists_that_do_not_fit_each_other_are_refused_in_one_line(tmp_path: Path, damaged: Embeddings) -> None:
    (tmp_path / FOLDER).mkdir()
    write_pictures_record(tmp_path / FOLDER, EMBEDDINGS, damaged)
    with pytest.raises(
        UserError, match=r"embeddings.json cannot be read: its lists for 'cell' .*; probe the run again"
    ):
        read_embeddings(tmp_path)
