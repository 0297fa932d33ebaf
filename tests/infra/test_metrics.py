from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from infra.metrics import MetricsWriter, read_metrics


def test_metrics_stand_in_the_file_and_in_tensorboard(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(10, {"loss": 2.5, "speed/images_per_s": 7.0})
        metrics.write(20, {"loss": 1.5})
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(10, 2.5), (20, 1.5)]
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 2.5), (20, 1.5)]


def test_a_resumed_run_drops_what_it_is_going_to_write_again(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as metrics:
        for step in (10, 20, 30):
            metrics.write(step, {"loss": 1.0})
    with MetricsWriter(tmp_path, steps_done=20) as metrics:
        metrics.write(30, {"loss": 3.0})
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(10, 1.0), (20, 1.0), (30, 3.0)]
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 1.0), (20, 1.0), (30, 3.0)]


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
