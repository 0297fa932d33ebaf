"""`pictures/embeddings.json`: t-SNE maps of the features of test images, several networks side by side."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from evaluation.results.picture_records import FOLDER, read_pictures
from infra.errors import require

EMBEDDINGS: Final = "embeddings.json"
EMBEDDINGS_VERSION: Final = 1
WARNING: Final = (
    "Only nearness means something in a t-SNE map: images that lie together have similar features. The distances "
    "between clusters, and their sizes and shapes, mean nothing."
)


@dataclass(frozen=True)
class EmbeddingMap:
    """The features of a set's images in two dimensions.

    Attributes:
        features: name of the features in the tables
        kind: a checkpoint or one of the controls, as in the rows of the tables
        epoch: epoch of a checkpoint
        step: step of a checkpoint
        missing: why there is no map; empty if there is one
        x: (n,) first coordinate of each image; empty without a map
        y: (n,) second coordinate
        trustworthiness: whether images near each other in the map are so by the features too, from 0 to 1 (Venna and
            Kaski 2001); None without a map
        knn_auc: AUC of the nearest neighbors by the features themselves, not by the map; None without a map, or if all
            images are of one class or of one patient
    """

    features: str
    kind: str
    epoch: float | None
    step: int | None
    missing: str = ""
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    trustworthiness: float | None = None
    knn_auc: float | None = None


@dataclass(frozen=True)
class EmbeddedSet:
    """The maps of one set: n of its test images, colored by the answers to one question.

    Attributes:
        dataset: label of the question in the tables
        preset: name of the preset that divides the set
        classes: names of the negative and the positive class
        asked: how many questions the task has; above 1, this one has the most images in its smaller class
        test_images: test images that answer the question
        left_out: reason -> images of the set that take no part, and are not shown
        perplexity: about how many neighbors of an image t-SNE looks at
        keys: (n,) key of each image in its set
        positive: (n,) 1 if it shows the positive class, else 0
        maps: one for each network
    """

    dataset: str
    preset: str
    classes: tuple[str, str]
    asked: int
    test_images: int
    left_out: dict[str, int]
    perplexity: float
    keys: list[str]
    positive: list[int]
    maps: list[EmbeddingMap]


@dataclass(frozen=True)
class Embeddings:
    """The content of `embeddings.json`.

    Attributes:
        version: of this record
        method: how the maps were made, as a sentence
        choice: how the images were chosen, as a sentence
        scores: what trustworthiness and knn_auc are, as a sentence
        sets: the maps of each set
    """

    version: int
    method: str
    choice: str
    scores: str
    sets: list[EmbeddedSet]


def read_embeddings(run: Path) -> Embeddings | None:
    """Read `run/pictures/embeddings.json`.

    Returns:
        The maps, None if there are none.

    Raises:
        UserError: if the file cannot be read, or its lists do not fit each other
    """
    found = read_pictures(run, EMBEDDINGS, EMBEDDINGS_VERSION, Embeddings)
    for of_set in found.sets if found else []:
        count = len(of_set.keys)
        fits = len(of_set.positive) == count and set(of_set.positive) <= {0, 1}
        fits &= all(len(item.x) == len(item.y) == (0 if item.missing else count) for item in of_set.maps)
        require(
            fits,
            f"{run / FOLDER / EMBEDDINGS} cannot be read: its lists for {of_set.dataset!r} do not fit each other; "
            "probe the run again",
        )
    return found
