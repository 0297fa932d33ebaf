"""A linear probe as the head from which fine-tuning starts.

A head that knows nothing yet distorts good features while it learns (Kumar et al. 2022, "Fine-Tuning can Distort
Pretrained Features and Underperform Out-of-Distribution"). The logistic regressions are fitted to the stored features
of the frozen backbone. So they are at their optimum without a pass over the images, and need no learning rate or number
of epochs of their own. They are not those of the frozen probe, which is fitted to folds 0 and 1 as well: these folds
choose the epoch and the threshold, and must teach nothing.
"""

import numpy as np
from sklearn.metrics import roc_auc_score

from evaluation.fitting.finetuning.images import TaskImages
from evaluation.fitting.finetuning.network import LinearHead
from evaluation.fitting.logistic_regression import fit_grid
from evaluation.results.classifier import Classifier
from evaluation.results.presets import Preset
from infra.arrays import Float32, Int64


def probe_head(features: Float32, images: TaskImages, preset: Preset) -> LinearHead:
    """Fit one logistic regression for each label to the training images.

    C is the value of the preset's grid with the best AUC on fold 0, the smallest of equally good ones.

    Args:
        features: (n, D) of the images, of the frozen backbone
        images: the images
        preset: C, iterations, and whether features are standardized
    """
    fitted = [_fitted(features, answers, images, preset) for answers in images.targets.answers]
    weight = np.stack([classifier.coefficients / classifier.scale for classifier in fitted])
    mean, intercept = (np.array([getattr(one, name) for one in fitted]) for name in ("mean", "intercept"))
    return LinearHead(weight, intercept - (weight * mean).sum(axis=1))


def _fitted(features: Float32, answers: Int64, images: TaskImages, preset: Preset) -> Classifier:
    """Return the best classifier for the answers (n,) to one question."""
    training, choosing = (rows[answers[rows] >= 0] for rows in (images.training, images.choosing))
    fits = fit_grid(
        features[training].astype(np.float64),
        answers[training],
        features[choosing].astype(np.float64),
        sorted(preset.c_grid),
        standardize=preset.standardize,
        max_iterations=preset.max_iterations,
    )
    return max(fits, key=lambda fit: roc_auc_score(answers[choosing], fit.probabilities)).classifier
