"""What a run measures about itself: one line of metrics from loss, health, optimizer and speed."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Final, NamedTuple

import torch
from torch.nn.utils import get_total_norm

from infra.monitoring.metrics import Histogram
from ssl_core.checkpoints.checkpoint import CheckpointState
from ssl_core.engines import Engine
from ssl_core.loss.ntxent import LossReport
from ssl_core.pretraining.collapse import CollapseAlarm
from ssl_core.pretraining.flops import peak_flop_per_s
from ssl_core.pretraining.health import Health, HealthWatch
from ssl_core.pretraining.learning_step import identities_of
from ssl_core.pretraining.run import Run
from ssl_core.pretraining.speed import Speed, StepWork
from ssl_core.views.batches import Batch

# Tags of TensorBoard and keys of metrics.jsonl for the fields of a LossReport.
_LOSS_TAGS: Final = ("loss", "health/top1_share", "health/top5_share", "health/projection_alignment")


class Line(NamedTuple):
    """A line of metrics, complete on the first rank.

    Attributes:
        values: numbers by tag
        histograms: distributions by tag
        training_s: seconds since the last line without waits for data
        summary: the line in a few words
        alarm: why the run has just been found collapsed; empty if it has not
    """

    values: dict[str, float]
    histograms: dict[str, Histogram]
    training_s: float
    summary: str
    alarm: str


class Monitor:
    """Watches the steps of one start; between two lines of metrics, all numbers stay on their device."""

    def __init__(self, run: Run, engine: Engine, flop_per_sample: Mapping[int, float | None]) -> None:
        """Start the first window.

        Args:
            run: the run
            engine: the engine, whose state is only read
            flop_per_sample: operations of a sample in a step, by the size of the views in pixels
        """
        self._run, self._engine, self._flop_per_sample = run, engine, flop_per_sample
        self._speed = Speed(engine.device, run.shards.stats())
        self._health = HealthWatch(engine.encoder.head, run.config.loss, run.config.views.small_views, run.ranks)
        self._alarm = CollapseAlarm(run.config.optim.warmup_steps)
        self._reports: list[LossReport] = []
        self._measured: Health | None = None
        on_gpu = engine.device.type == "cuda"
        name = torch.cuda.get_device_name(engine.device) if on_gpu else ""
        self._peak_flop_per_s = peak_flop_per_s(name, run.config.train.settled_precision) if on_gpu else None

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches; waits for them count from here on."""
        return self._speed.watch(batches)

    def watching(self, *, closely: bool) -> AbstractContextManager[None]:
        """Watch one step of the engine within the block; `closely` where a line of metrics follows it."""
        self._measured = None
        return self._health.watching() if closely else nullcontext()

    def add(self, batch: Batch, report: LossReport | None, learn_s: float, *, closely: bool) -> None:
        """Add a step that has just ended; collective.

        Args:
            batch: its batch
            report: its loss; None if it was skipped
            learn_s: seconds of learning
            closely: as in `watching`
        """
        if report is not None:
            self._reports.append(report)
            if closely:
                self._measured = self._health.measure(identities_of(batch), torch.from_numpy(batch.valid))
        self._speed.add(batch.wait_s, learn_s)

    def line(self, state: CheckpointState, learning_rate: float, skipped: int) -> Line:
        """Return the metrics of the steps since the last line. Collective.

        Args:
            state: the position of the run
            learning_rate: that of the last step
            skipped: steps that were skipped in a row before this line
        """
        run, health = self._run, self._measured or Health({}, {})
        views = run.views_at(state.step - 1)
        work = StepWork(run.config.data.global_batch, self._flop_per_sample.get(views.size_px), self._peak_flop_per_s)
        values = {"epoch": state.epoch, **health.values, **_means(self._reports), **self._optimizer(learning_rate)}
        values |= self._speed.window(work, run.shards.stats())
        values |= {"data/samples_masked": state.samples_masked, "run/steps_skipped": skipped}
        if run.early_stages:
            values["views/size_px"] = views.size_px
        alarm = self._alarm.look_at(state.step, state.epoch, health.values)
        values["run/collapsed"] = float(self._alarm.is_on)
        self._reports = []
        summary = "loss {loss:.4f}  top-1 {health/top1_share:.3f}  {speed/images_per_s:.0f} images/s"
        return Line(values, health.histograms, self._speed.training_s, summary.format_map(values), alarm)

    def _optimizer(self, learning_rate: float) -> dict[str, float]:
        engine = self._engine
        weights = get_total_norm([weight.detach() for weight in engine.encoder.parameters()])
        values = {"optim/learning_rate": learning_rate, "optim/weight_norm": weights.item()}
        if engine.gradient_norm is not None:
            values["optim/gradient_norm"] = float(engine.gradient_norm)
        if engine.loss_scale is not None:
            values["optim/loss_scale"] = engine.loss_scale
        return values


def _means(reports: list[LossReport]) -> dict[str, float]:
    if not reports:  # every step was skipped
        return dict.fromkeys(_LOSS_TAGS, float("nan"))
    means = torch.stack([torch.stack(list(report)) for report in reports]).mean(0)
    return dict(zip(_LOSS_TAGS, means.tolist(), strict=True))
