"""Errors of the loss and its gradient in fp32 against autograd in float64, from the start to the end of training.

The table has the relative error of the gradient with respect to the projections and, in brackets, that of the loss.
Below a loss of 1e-8, float64 autograd has no correct digits left; `test_ntxent.py` compares with 90 decimals there.
"""

import argparse
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from benchmarks.common import table
from ssl_core.loss.ntxent import Identities, LossConfig, dense_nt_xent, nt_xent

TEMPERATURES: Final = (0.01, 0.02, 0.05, 0.1, 0.5, 1.0)
# Distance of a sample's two views, relative to the distance between samples; None if all projections are alike.
STAGES: Final = {"start": None, "midway": 1.0, "end": 1e-2, "very end": 1e-4}
LEAST_LOSS: Final = 1e-8
SamePatient = Literal["negative", "masked", "positive"]
Name = Literal["dense", "tiled", "triton"]


class Errors(NamedTuple):
    """Relative errors, and the loss they belong to."""

    in_loss: float
    in_gradient: float
    loss: float


def make_projections(stage: str, samples: int) -> tuple[Tensor, Tensor]:
    """Return two views' projections (B, 128) as a network makes them at a stage of training."""
    draw = torch.Generator().manual_seed(1)
    each, first, second = (torch.randn(samples, 128, generator=draw) for _ in range(3))
    apart = STAGES[stage]
    if apart is None:
        return each[:1] + 0.1 * first, each[:1] + 0.1 * second
    return each + apart * first, each + apart * second


def relative_errors(
    stage: str, samples: int, tau: float, same_patient: SamePatient, executor: Name, device: str = "cpu"
) -> Errors:
    """Compare fp32 with autograd in float64 on the same projections, three images a patient on average."""
    draw = torch.Generator().manual_seed(2)
    patient = torch.randint(0, max(1, samples // 3), (samples,), generator=draw)
    study = 2 * patient + torch.randint(0, 2, (samples,), generator=draw)
    ids = Identities(*(ids.to(device) for ids in (torch.arange(samples), patient, study)))
    group = None if same_patient == "negative" else ids.patient.repeat(2)
    positive = ids.study.repeat(2) if same_patient == "positive" else None
    first, second = (view.to(device).requires_grad_() for view in make_projections(stage, samples))
    exact = [view.detach().double().requires_grad_() for view in (first, second)]
    expected = dense_nt_xent(exact[0], exact[1], tau, group, positive)
    truth = torch.stack(torch.autograd.grad(expected, exact))
    loss = nt_xent(first, second, LossConfig(tau, same_patient, executor), ids).loss
    found = torch.stack(torch.autograd.grad(loss, (first, second)))
    value = expected.item()
    in_gradient = (found - truth).norm() / truth.norm()
    return Errors(abs(loss.item() - value) / max(value, 1e-300), in_gradient.item(), value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each executor and treatment of a patient's other images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096, help="N, two for each sample")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--executors", nargs="+", default=["dense", "tiled"], help="dense, tiled, triton")
    parser.add_argument("--same_patient", nargs="+", default=["negative", "positive"])
    options = parser.parse_args(arguments)
    for executor in options.executors:
        for same_patient in options.same_patient:
            print(f"{executor}, other images of a patient: {same_patient}, N = {options.rows}, fp32, {options.device}")
            lines = []
            for stage in STAGES:
                measured = [
                    relative_errors(stage, options.rows // 2, tau, same_patient, executor, options.device)
                    for tau in TEMPERATURES
                ]
                lines.append(
                    [
                        stage,
                        *(f"{e.in_gradient:.0e} ({e.in_loss:.0e})" if e.loss > LEAST_LOSS else "-" for e in measured),
                    ]
                )
            print(table(["tau", *(str(tau) for tau in TEMPERATURES)], lines), flush=True)


if __name__ == "__main__":
    main()
