import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard.summary import scalar

from evaluation.data.labeled_sets import ProbeData
from evaluation.probing import watch as watching
from evaluation.probing.config import ProbeConfig
from evaluation.probing.probe import probe
from evaluation.results.results import Results
from evaluation.results.rows import ProbeResult
from infra.errors import RunFailed, UserError
from infra.monitoring.event_file import EventFile
from infra.monitoring.status import State, Status, write_status
from infra.storage.locks import locked
from ssl_core.checkpoints.checkpoint import CheckpointState
from ssl_core.checkpoints.tensors import save_checkpoint
from ssl_core.model.encoder import ModelConfig, build_encoder

MakeRun = Callable[..., Path]


def config_of(run_folder: Path, shards: Path) -> ProbeConfig:
    return ProbeConfig(
        run_folder,
        ProbeData([str(shards)]),
        presets=["gazda2021"],
        executor="torchvision",
        search="serial",
        untrained_seeds=1,
        few_labels=False,
        folds=2,
        bootstrap_resamples=0,
        pictures=False,
    )


def read_events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def scalars(events: EventAccumulator, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in events.Scalars(tag)}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLL_S", 0.2)
    monkeypatch.setattr(watching, "RESTART_S", 1.5)


def test_each_checkpoint_is_probed_as_it_appears_and_one_that_is_removed_keeps_its_row(run: Path, shards: Path) -> None:
    write_status(run, Status("running", 10))
    rounds: list[Results] = []

    def train_on() -> None:
        with locked(run, "pretraining"):
            while not rounds:
                time.sleep(0.1)
            tensors = build_encoder(ModelConfig("resnet18", 16, 8), seed=3).state_dict()
            save_checkpoint(run, CheckpointState(15, 3.0, "resnet18", "-", 0.5, 0.25, 1, "-", "-"), tensors, {})
            for path in sorted((run / "checkpoints" / "step-5").iterdir()):
                path.unlink()  # retention
            while len(rounds) < 2:
                time.sleep(0.1)
            write_status(run, Status("finished", 15))

    trainer = threading.Thread(target=train_on)
    trainer.start()
    results = watching.watch(config_of(run, shards), each=rounds.append)
    trainer.join()
    steps = [[row.step for row in result.rows if row.kind == "checkpoint"] for result in rounds]
    assert steps == [[5, 10], [5, 10, 15], [5, 10, 15]]
    assert not any(row.kind == "shuffled" for row in rounds[1].rows)
    assert any(row.kind == "shuffled" for row in results.rows)
    shown = scalars(read_events(run / "events" / "probe"), "probe/cell/gazda2021/auc")
    expected = {row.step: row.scores.auc.value for row in results.rows if row.kind == "checkpoint"}
    assert shown == pytest.approx(expected)


@pytest.mark.slow
def test_a_probe_shows_each_step_once_with_its_interval_and_nothing_of_an_earlier_probe(
    run: Path, shards: Path
) -> None:
    for earlier in ("probe", "probe/0000", "classifiers/nih_epoch-2_rigorous"):
        with EventFile(run / "events" / earlier) as events:
            events.write(10, [scalar("probe/cell/rigorous/acc", 0.5), scalar("probe/cell/gazda2021/acc", 0.5)])
    results = probe(replace(config_of(run, shards), bootstrap_resamples=100))
    assert not (run / "events" / "probe" / "0000").exists()
    assert {path.name for path in (run / "events" / "classifiers").iterdir()} == {
        "cell_untrained-backbone_gazda2021",
        "cell_epoch-2_gazda2021",
    }
    of_probe = read_events(run / "events" / "probe")
    scores = {row.step: row.scores.acc for row in results.rows if row.kind == "checkpoint"}
    assert scalars(of_probe, "probe/cell/gazda2021/acc") == pytest.approx({s: e.value for s, e in scores.items()})
    assert scalars(of_probe, "probe_interval/cell/gazda2021/acc_low") == pytest.approx(
        {step: estimate.low for step, estimate in scores.items()}
    )
    assert not [tag for tag in of_probe.Tags()["scalars"] if "rigorous" in tag]
    of_classifier = read_events(run / "events" / "classifiers" / "cell_epoch-2_gazda2021")
    require_curves_of(next(row for row in results.rows if row.step == 10), of_classifier)
    shown = tags_of(of_probe) | tags_of(of_classifier)
    with_pictures = {"probe/<set>/<preset>/attention"}  # see tests/evaluation/pictures
    assert {tag.replace("cell/gazda2021", "<set>/<preset>") for tag in shown} == documented() - with_pictures


def tags_of(events: EventAccumulator) -> set[str]:
    return {tag for kind in ("scalars", "tensors") for tag in events.Tags()[kind]} - {"custom_scalars__config__"}


def documented() -> set[str]:
    """The tags of a probe in docs/monitoring.md."""
    page = Path(__file__).parents[3] / "docs" / "monitoring.md"
    of_probe = page.read_text(encoding="utf-8").split("\n## Probe\n")[1].split("\n## ")[0]
    rows = [line for line in of_probe.splitlines() if line.startswith("| `")]
    return {tag for row in rows for tag in re.findall(r"`([\w/<>]+)`", row.split(" | ")[0])}


def require_curves_of(row: ProbeResult, events: EventAccumulator) -> None:
    """Check that a classifier's run shows the scores of its row, also as the areas below its two curves."""
    roc = scalars(events, "roc/cell/gazda2021")
    assert np.trapezoid(list(roc.values()), np.array(list(roc)) / 100) == pytest.approx(row.scores.auc.value, abs=0.02)
    [curve] = events.Tensors("precision_recall/cell/gazda2021")
    true_positives, false_positives, *_ = make_ndarray(curve.tensor_proto)
    assert (curve.step, true_positives[0], false_positives[0]) == (10, 16, 16)  # every image is above threshold 0
    assert scalars(events, "classifier/auc") == {0: pytest.approx(row.scores.auc.value)}
    [start] = [
        HParamsPluginData.FromString(content).session_start_info
        for tag, content in events.PluginTagToContent("hparams").items()
        if tag == SESSION_START_INFO_TAG
    ]
    assert start.hparams["features"].string_value == "epoch 2"
    assert start.hparams["C"].number_value == row.c[0]


@pytest.mark.parametrize("left", ["failed", "running"])
def test_run_that_is_started_again_after_it_failed_or_was_killed_is_still_watched(
    tmp_path: Path, shards: Path, make_run: MakeRun, left: State
) -> None:
    """The run is down for less, then runs for longer, than the time after which a run counts as ended."""
    run = make_run(tmp_path / "run", shards, steps=())
    write_status(run, Status(left, 0, "another rank was lost"))

    def start_again() -> None:
        time.sleep(0.5)
        with locked(run, "pretraining"):
            time.sleep(0.5)  # a checkpoint is being loaded
            write_status(run, Status("running", 0))
            time.sleep(2.0)
            write_status(run, Status("refused", 0, "it was watched to its end"))

    trainer = threading.Thread(target=start_again)
    trainer.start()
    with pytest.raises(RunFailed, match="ended without a checkpoint; it was watched to its end"):
        watching.watch(config_of(run, shards))
    trainer.join()


@pytest.mark.parametrize("is_damaged", [False, True])
@pytest.mark.slow
def test_run_that_was_killed_and_not_restarted_is_probed_to_its_end(
    run: Path, shards: Path, *, is_damaged: bool
) -> None:
    write_status(run, Status("running", 10))
    if is_damaged:
        (run / "status.json").write_bytes(b"\x80")
    results = watching.watch(config_of(run, shards))
    assert any(row.kind == "shuffled" for row in results.rows)  # only the last round has them


def test_watch_does_not_wait_for_a_run_that_failed_long_ago(
    tmp_path: Path, shards: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "RESTART_S", 600.0)
    run = make_run(tmp_path / "run", shards, steps=())
    write_status(run, Status("failed", 0, "no disk", time_s=time.time() - 601))
    with pytest.raises(RunFailed, match="ended without a checkpoint; no disk"):
        watching.watch(config_of(run, shards))


def test_folder_that_does_not_exist_is_refused_and_not_made(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(UserError, match=r"run_folder=.*/runn does not exist; name the folder"):
        watching.watch(config_of(tmp_path / "runn", shards))
    assert not (tmp_path / "runn").exists()


def test_run_that_ends_without_a_checkpoint_is_reported(tmp_path: Path, shards: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path / "run", shards, steps=())
    write_status(run, Status("failed", 0, "no disk"))
    with pytest.raises(RunFailed, match="ended without a checkpoint; no disk"):
        watching.watch(config_of(run, shards))


def test_checkpoint_that_cannot_be_probed_ends_the_watch_with_its_error(run: Path, shards: Path) -> None:
    write_status(run, Status("running", 15))
    tensors = build_encoder(ModelConfig("resnet18", 16, 8), seed=0).state_dict()
    tensors["backbone.resnet.conv1.weight"].fill_(float("nan"))
    save_checkpoint(run, CheckpointState(15, 3.0, "resnet18", "-", 0.5, 0.25, 1, "-", "-"), tensors, {})
    with pytest.raises(UserError, match="epoch 3 on cell are not finite"):
        watching.watch(config_of(run, shards))
