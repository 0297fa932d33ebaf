"""The files that a run writes into its folder: metrics, checkpoints and, on request, the log of samples."""

from contextlib import ExitStack
from dataclasses import asdict
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch

from infra.log import say
from infra.monitoring.metrics import MetricsWriter
from infra.monitoring.trackers import Trackers
from infra.ranks.processes import Ranks, on_first_rank
from ssl_core.checkpoints.checkpoint import CheckpointState
from ssl_core.checkpoints.mirror import Mirror
from ssl_core.checkpoints.writer import CheckpointWriter, Tensors
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.pretraining.monitor import Line
from ssl_core.pretraining.resume import flat
from ssl_core.pretraining.run_clock import RunClock
from ssl_core.pretraining.sample_log import SampleLog
from ssl_core.views.batches import Batch


class RunOutputs:
    """The open files and trackers of a run; only the first rank writes metrics and checkpoints and prints."""

    def __init__(
        self,
        config: PretrainConfig,
        first_step: int,
        ranks: Ranks,
        device: torch.device,
        mirror: Mirror | None,
        *,
        checkpoint_bytes: int,
    ) -> None:
        """Open the files. Collective.

        Args:
            config: the run
            first_step: step from which this start continues
            ranks: this process among all
            device: device of the tensors to save
            mirror: the store that receives copies, on the first rank
            checkpoint_bytes: size of one checkpoint, to reserve memory for its copy in advance

        Raises:
            UserError: on all ranks, if the first rank cannot write its files
        """
        self._ranks = ranks
        self._metrics: MetricsWriter | None = None
        self._writer: CheckpointWriter | None = None
        run = config.run_folder
        with ExitStack() as stack:

            def open_first() -> None:
                self._metrics = stack.enter_context(MetricsWriter(run, first_step))
                self._metrics.show_together("loss and chance", ["^loss$", "^loss/chance$"])
                self._clock = RunClock(self._metrics.last_line, self._metrics.earlier_starts)
                self._trackers = stack.enter_context(Trackers(run, config.log, flat(asdict(config))))
                self._writer = stack.enter_context(
                    CheckpointWriter(run, config.checkpoints, device, checkpoint_bytes, mirror)
                )

            on_first_rank(ranks, open_first)
            self._samples = stack.enter_context(SampleLog(run, ranks)) if config.train.log_samples else None
            self._stack = stack.pop_all()

    def __enter__(self) -> "RunOutputs":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(error_type, error, trace)

    def log_samples(self, batch: Batch) -> None:
        """Record the samples of a finished step, if requested."""
        if self._samples:
            self._samples.write(batch.step, batch.epochs, batch.rows["sample"], batch.valid, batch.second_samples)

    def write_metrics(self, step: int, line: Line) -> None:
        """Write a line of metrics."""
        if self._metrics and self._writer:
            saving = {
                "checkpoint/failures": float(self._writer.failures),
                "checkpoint/wait_s": self._writer.wait_s,
                "checkpoint/save_s": self._writer.save_s,
            }
            values = line.values | self._clock.values(line.training_s) | saving
            self._metrics.write(step, values, line.histograms)
            self._trackers.write(step, values)

    def show_image(self, name: str, pixels: npt.NDArray[np.uint8]) -> None:
        """Write an image (H, W, C) to TensorBoard."""
        if self._metrics:
            self._metrics.show(name, pixels)

    def save(self, state: CheckpointState, model: Tensors, optimizer: Tensors) -> None:
        """Save a checkpoint in the background."""
        if self._writer:
            self._writer.save(state, model, optimizer)

    def save_last(self, state: CheckpointState, model: Tensors, optimizer: Tensors) -> None:
        """Save the last checkpoint of this start; on all ranks, return once it is durable, or raise."""
        on_first_rank(self._ranks, lambda: self._writer and self._writer.save_now(state, model, optimizer))

    def say(self, message: str) -> None:
        """Print a line on the first rank."""
        if self._ranks.is_first:
            say(message)
