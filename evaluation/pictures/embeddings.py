"""Maps of features in two dimensions by t-SNE (van der Maaten and Hinton 2008), and how far to believe them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

import numpy as np
from sklearn.manifold import TSNE, trustworthiness
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from evaluation.data.feature_sources import FeatureSource
from evaluation.pictures.embedded_images import MOST_IMAGES, MOST_POINTS, EmbeddedImages
from evaluation.results.embedding_records import EMBEDDINGS_VERSION, EmbeddedSet, EmbeddingMap, Embeddings
from evaluation.scoring.probe_results import NEIGHBORS
from infra.arrays import Float32, Float64, Int64
from infra.parallel.process_map import worker_count

TRUSTED_NEIGHBORS: Final = 5
LEAST: Final = 12  # images of a map; trustworthiness needs more than twice its neighbors
_PERPLEXITY: Final = 30.0
_STEPS: Final = 500  # 1,000 raise trustworthiness from 0.9952 to 0.9954 on 800 handwritten digits, in twice the time
_SAME: Final = 1e-6  # features of length 1 that differ by less are equal but for rounding

_METHOD: Final = (
    f"t-SNE of the features by cosine, {_STEPS} steps from two principal components. The axes have no meaning."
)
_CHOICE: Final = (
    f"Test images that answer the question, at most {MOST_IMAGES:,} of a set and about {MOST_POINTS:,} points in all "
    "maps. If there are more, the seed and the identities of the images decide which are shown."
)
_SCORES: Final = (
    f"Trustworthiness (0 to 1) says whether an image's {TRUSTED_NEIGHBORS} nearest images in the map are near by the "
    f"features too. The kNN AUC is that of each image's {NEIGHBORS} nearest images of other patients by the features "
    "themselves, among the images shown."
)


def embeddings(images: Sequence[EmbeddedImages]) -> Embeddings:
    """Return the maps of all sets; equal features give equal maps, on any number of cores."""
    jobs = [partial(embedding_map, item, network) for item in images for network in item.features]
    with threadpool_limits(1), ThreadPoolExecutor(worker_count(0, max(1, len(jobs)))) as pool:
        maps = pool.map(_on_one_thread, jobs)
        sets = [_embedded_set(item, [next(maps) for _ in item.features]) for item in images]
    return Embeddings(EMBEDDINGS_VERSION, _METHOD, _CHOICE, _SCORES, sets)


def _on_one_thread(job: "partial[EmbeddingMap]") -> EmbeddingMap:
    """Run a job on one core: sums over several threads are rounded by chance, and t-SNE amplifies that."""
    with threadpool_limits(1, user_api="openmp"):  # a limit of this thread alone, unlike that of BLAS
        return job()


def _embedded_set(images: EmbeddedImages, maps: list[EmbeddingMap]) -> EmbeddedSet:
    cohort, record = images.task.cohort, images.task.record
    return EmbeddedSet(
        dataset=record.label,
        preset=record.preset,
        classes=(record.negative, record.positive),
        asked=images.asked,
        test_images=images.test_images,
        left_out={reason: count for reason, count in cohort.excluded.items() if count},
        perplexity=perplexity_of(len(images.rows)),
        keys=images.keys,
        positive=images.classes.tolist(),
        maps=maps,
    )


def embedding_map(images: EmbeddedImages, network: FeatureSource) -> EmbeddingMap:
    """Return the map of the features of one network, or why there is none."""
    features = images.features[network]
    named = partial(EmbeddingMap, network.name, network.kind, network.epoch, network.step)
    missing = _missing(features)
    if missing:
        return named(missing)
    points = _points(features)
    return named(
        x=points[:, 0].tolist(),
        y=points[:, 1].tolist(),
        trustworthiness=float(trustworthiness(features, points, n_neighbors=TRUSTED_NEIGHBORS)),
        knn_auc=neighbors_auc_among(features, images.classes, images.patients),
    )


def perplexity_of(images: int) -> float:
    """Return the perplexity for a number of images; t-SNE looks at three times as many neighbors."""
    return min(_PERPLEXITY, (images - 1) / 3)


def _missing(features: Float32) -> str:
    if len(features) < LEAST:
        return f"{len(features)} images are too few for a map, which needs {LEAST}"
    if np.ptp(features, axis=0).max() < _SAME:
        return "the features of all images are the same"
    return ""


def _points(features: Float32) -> Float64:
    """Return the coordinates (n, 2) of features (n, D), rounded for a picture."""
    tsne = TSNE(perplexity=perplexity_of(len(features)), init="pca", max_iter=_STEPS, random_state=0)
    return np.round(tsne.fit_transform(features).astype(np.float64), 2)


def neighbors_auc_among(features: Float32, classes: Int64, patients: Int64) -> float | None:
    """Return the AUC of the nearest neighbors by cosine, where each image is tested on the images of other patients.

    The score of an image is the share of positives among its 20 nearest, each weighted by the inverse of its distance,
    as for the kNN AUC of the tables.

    Args:
        features: (n, D) of length 1
        classes: (n,) 1 positive, 0 negative
        patients: (n,) codes

    Returns:
        The AUC, None for images of one class or of one patient.
    """
    if len(np.unique(classes)) < 2 or len(np.unique(patients)) < 2:
        return None
    exact = features.astype(np.float64)
    distances = np.clip(1 - exact @ exact.T, 1e-12, 2)  # above 0 for the inverse
    distances[patients[:, None] == patients] = np.inf
    count = min(NEIGHBORS, len(classes) - 1)
    nearest = np.argpartition(distances, count - 1, axis=1)[:, :count]
    weights = 1 / np.take_along_axis(distances, nearest, axis=1)
    return float(roc_auc_score(classes, (weights * classes[nearest]).sum(axis=1) / weights.sum(axis=1)))
