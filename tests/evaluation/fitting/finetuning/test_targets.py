import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from sklearn.metrics import roc_auc_score

from evaluation.fitting.finetuning.targets import Loss, Targets

#              label: known of both, mostly unknown, known everywhere
ANSWERS = np.array([[1, 0, 0, 0, -1, 1], [-1, -1, 1, -1, 0, -1], [0, 1, 1, 0, 1, 1]])
CLASSES = np.array([[1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]])  # the last three images are of other classes


def logits_of(outputs: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(6, outputs))).float().requires_grad_()


def test_loss_and_gradient_of_several_labels_are_those_computed_by_hand() -> None:
    logits = logits_of(3)
    loss = Loss(Targets(ANSWERS, exclusive=False))(logits, np.arange(6))
    loss.backward()  # type: ignore[no-untyped-call]
    expected_loss, expected = 0.0, np.zeros((6, 3))
    known = int((ANSWERS >= 0).sum())
    for label, answers in enumerate(ANSWERS):
        for image, answer in enumerate(answers):
            if answer >= 0:
                weight = (answers >= 0).sum() / (2 * (answers == answer).sum())
                probability = expit(logits[image, label].item())
                expected_loss -= weight * np.log(probability if answer else 1 - probability) / known
                expected[image, label] = weight * (probability - answer) / known
    assert loss.item() == pytest.approx(expected_loss, rel=1e-6)
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad, expected, atol=1e-7)
    assert (logits.grad.numpy().T[ANSWERS < 0] == 0).all()


def test_loss_and_gradient_of_classes_are_those_computed_by_hand() -> None:
    logits = logits_of(3)
    loss = Loss(Targets(CLASSES, exclusive=True))(logits, np.arange(6))
    loss.backward()  # type: ignore[no-untyped-call]
    goals = np.array([0, 1, 1, 2, 2, 2])
    weights = 6 / (3 * np.array([1, 2, 2, 3, 3, 3]))
    shares = softmax(logits.detach().double().numpy(), axis=1)
    assert loss.item() == pytest.approx(np.mean(-weights * np.log(shares[np.arange(6), goals])), rel=1e-6)
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad, weights[:, None] * (shares - np.eye(3)[goals]) / 6, atol=1e-7)


def test_a_label_that_a_batch_knows_nothing_of_learns_nothing_from_it() -> None:
    loss = Loss(Targets(ANSWERS, exclusive=False))
    logits, alone = logits_of(3), logits_of(3)
    batch = np.array([0, 1, 3])  # the second label is known for none of these
    loss(logits[:3], batch).backward()  # type: ignore[no-untyped-call]
    without = Loss(Targets(ANSWERS[[0, 2]], exclusive=False))
    without(alone[:3, [0, 2]], batch).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert alone.grad is not None
    assert torch.equal(logits.grad, alone.grad)
    assert (logits.grad[:, 1] == 0).all()
    assert (logits.grad[:3, 0] != 0).all()


def test_probabilities_and_their_mean_auc_rest_on_known_answers_alone() -> None:
    logits = logits_of(3).detach().double().numpy()
    labels = Targets(ANSWERS, exclusive=False)
    probabilities = labels.probabilities(logits)
    np.testing.assert_allclose(probabilities, expit(logits).T)
    aucs = [
        roc_auc_score(answers[answers >= 0], of[answers >= 0])
        for answers, of in zip(ANSWERS, probabilities, strict=True)
    ]
    assert labels.mean_auc(probabilities) == pytest.approx(np.mean(aucs), abs=1e-12)
    unknown = np.where(ANSWERS < 0, 1 - probabilities, probabilities)
    assert labels.mean_auc(unknown) == labels.mean_auc(probabilities)


def test_images_of_other_classes_have_an_output_of_their_own_if_there_are_any() -> None:
    classes = Targets(CLASSES, exclusive=True)
    assert classes.outputs == 3
    assert classes.of(np.arange(3)).outputs == 2
    assert Targets(CLASSES, exclusive=False).outputs == 2
    logits = logits_of(3).detach().double().numpy()
    np.testing.assert_allclose(classes.probabilities(logits), softmax(logits, axis=1).T[:2])
