"""What a network is to say of the images of a task: its outputs, its loss, and how well it ranks the images."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit, softmax
from sklearn.metrics import roc_auc_score
from sklearn.utils.class_weight import compute_sample_weight
from torch import Tensor

from infra.arrays import Float32, Float64, Int64


@dataclass(frozen=True)
class Targets:
    """The answers of n images to the Q questions of a task, one for each label.

    Attributes:
        answers: (Q, n) 1 positive, 0 negative, below 0 unknown
        exclusive: whether the labels are classes, of which an image has one at most, and all answers are known
    """

    answers: Int64
    exclusive: bool

    def of(self, rows: Int64) -> "Targets":
        """Return the answers of some images."""
        return Targets(self.answers[:, rows], self.exclusive)

    @property
    def outputs(self) -> int:
        """Outputs that a network needs: one for each label, and one for images of other classes if there are any."""
        return len(self.answers) + int(self.exclusive and bool((self.answers != 1).all(axis=0).any()))

    def probabilities(self, logits: Float64) -> Float64:
        """Return the probability (Q, n) of each label from the outputs (n, outputs) of a network."""
        shares = softmax(logits, axis=1) if self.exclusive else expit(logits)
        return np.ascontiguousarray(shares.T[: len(self.answers)])

    def mean_auc(self, probabilities: Float64) -> float:
        """Return the mean over the labels of the AUC on the images whose answer is known, from (Q, n)."""
        known = self.answers >= 0
        aucs = [
            roc_auc_score(answers[inside], of_label[inside])
            for answers, of_label, inside in zip(self.answers, probabilities, known, strict=True)
        ]
        return float(np.mean(aucs))


class Loss:
    """The loss of a network on training images: both answers of a label, or all classes, weigh the same in total.

    Labels that do not exclude each other have a binary cross-entropy each; an unknown answer has no part in the mean.
    Classes have one cross-entropy together.
    """

    def __init__(self, training: Targets) -> None:
        """Weigh the answers (Q, n) of all training images."""
        self._exclusive = training.exclusive
        if training.exclusive:
            others = (training.answers != 1).all(axis=0)
            goals = np.where(others, len(training.answers), training.answers.argmax(axis=0))
            weights = _balanced(goals)
        else:
            goals = training.answers.T
            weights = np.stack([_balanced(answers) for answers in training.answers], axis=1)
        self._goals, self._weights = torch.from_numpy(np.ascontiguousarray(goals)), torch.from_numpy(weights)

    def __call__(self, logits: Tensor, positions: Int64) -> Tensor:
        """Return the loss of outputs (b, outputs) for the training images at these positions (b,)."""
        chosen = torch.from_numpy(positions)
        goals, weights = self._goals[chosen].to(logits.device), self._weights[chosen].to(logits.device)
        if self._exclusive:
            return (weights * F.cross_entropy(logits, goals, reduction="none")).mean()
        known = goals >= 0
        return F.binary_cross_entropy_with_logits(logits[known], goals[known].to(logits), weights[known])


def _balanced(classes: Int64) -> Float32:
    """Return (n,) weights that are equal in total for each class; 0 where the class is unknown."""
    weights, known = np.zeros(len(classes), np.float32), classes >= 0
    weights[known] = compute_sample_weight("balanced", classes[known])
    return weights
