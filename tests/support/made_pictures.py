"""Made-up pictures of a probe: attention maps and faults, drawn by a program."""

import io
from dataclasses import replace
from pathlib import Path

from PIL import Image

from evaluation.results.embedding_records import (
    EMBEDDINGS,
    EMBEDDINGS_VERSION,
    EmbeddedSet,
    EmbeddingMap,
    Embeddings,
)
from evaluation.results.fault_records import (
    FAULTS,
    FAULTS_VERSION,
    ErrorRates,
    Fault,
    Faults,
    GroupErrors,
    QuestionFaults,
    RelatedImage,
)
from evaluation.results.picture_records import (
    ATTENTION,
    ATTENTION_VERSION,
    Attention,
    AttentionMap,
    OutsideShare,
    PicturedImage,
    Randomized,
    write_pictures_record,
)
from evaluation.results.scores import Estimate

KEY, PATIENT = "key-of-an-image", "fedcba9876543210"


def made_jpeg() -> bytes:
    content = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).save(content, "JPEG")
    return content.getvalue()


def write_made_pictures(run: Path) -> None:
    """Write `run/pictures/` with three maps: the file of one image is missing, that of another leads elsewhere."""
    folder = run / "pictures"
    folder.mkdir()
    for path in (folder / "a.jpg", folder / "map.jpg", run / "secret.jpg"):
        path.write_bytes(made_jpeg())
    images = [
        PicturedImage("cell", "test", KEY, PATIENT, 1, "AP", "F", 4.5, name)
        for name in ("a.jpg", "../secret.jpg", "missing.jpg")
    ]
    write_pictures_record(folder, ATTENTION, made_attention(images))
    write_pictures_record(folder, FAULTS, made_faults(images[0]))
    write_pictures_record(folder, EMBEDDINGS, made_embeddings())


def made_attention(images: list[PicturedImage]) -> Attention:
    return Attention(
        ATTENTION_VERSION,
        *("cell", "rigorous", "epoch 24"),
        positive="PNEUMONIA",
        negative="NORMAL",
        method="By Grad-CAM.",
        choice="Drawn by seed 0.",
        maps=[AttentionMap(image, 0.93, 0.41, "map.jpg", 0.12) for image in images],
        randomized=[Randomized("the whole backbone", 8, Estimate(0.125, 0.05, 0.2), None)],
        outside=[OutsideShare("epoch 24", 16, 1, Estimate(0.31, 0.28, 0.34), 0.44)],
        outside_region="Outside: a border.",
    )


def made_faults(image: PicturedImage) -> Faults:
    """One false negative with images beside it, of a question that has more, and error rates in one group."""
    beside = RelatedImage(replace(image, label=0), "development", None, None, 0.87)
    tested = RelatedImage(image, "test", 0.61, 0.41, 0.99)
    fault = Fault(image, 1, 0.07, 0.41, 300, [beside], [], [tested], 0, 3, "map.jpg")
    question = QuestionFaults("cell", "rigorous", "epoch 24", "PNEUMONIA", "NORMAL", 624, 0, 12, [fault])
    group = GroupErrors("sex", "F", 290, 200, 180, 0, 12, Estimate(0.0, 0.0, 0.03), Estimate(0.067, 0.04, 0.11))
    return Faults(FAULTS_VERSION, [ErrorRates("cell", "rigorous", "epoch 24", [group])], [question])


def made_embeddings() -> Embeddings:
    """One set of 40 images with the maps of two networks, one of which has none."""
    x = [float(number % 7) for number in range(40)]
    maps = [
        EmbeddingMap("untrained backbone", "untrained", None, None, missing="the features of all images are the same"),
        EmbeddingMap("epoch 24", "checkpoint", 24.0, 1200, "", x, x[::-1], 0.912, 0.875),
    ]
    keys = [f"{KEY}-{number}" for number in range(40)]
    of_set = EmbeddedSet(
        "cell", "rigorous", ("NORMAL", "PNEUMONIA"), 3, 624, {"no answer": 2}, 13.0, keys, [0, 1] * 20, maps
    )
    return Embeddings(EMBEDDINGS_VERSION, "t-SNE by cosine.", "At most 2,000 images.", "Trustworthiness is.", [of_set])
