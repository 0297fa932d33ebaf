"""The mean of a measurement over images, with an interval over patients."""

import numpy as np

from evaluation.results.scores import Estimate
from evaluation.scoring.intervals import Evidence, estimate_of_mean
from evaluation.scoring.scores import image_weights
from infra.arrays import Float64, Int64


def estimate_mean(values: Float64, patients: Int64, *, resamples: int, seed: int) -> Estimate | None:
    """Return the mean of values (m,) of images with its 95 % interval; None without images.

    Args:
        values: one for each image
        patients: (m,) codes; the images of a patient are resampled together
        resamples: bootstrap resamples of the patients
        seed: seed of the resamples
    """
    if not len(values):
        return None
    chunks = image_weights(patients, resamples=resamples, seed=seed)
    resampled = np.concatenate([np.empty(0), *(weights @ values / weights.sum(axis=1) for weights in chunks)])
    return estimate_of_mean(float(values.mean()), resampled, Evidence(len(np.unique(patients))))
