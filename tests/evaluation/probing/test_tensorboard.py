"""What TensorBoard itself serves of a probe."""

import io
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from evaluation.data.labeled_sets import ProbeData
from evaluation.pictures.projector import THUMBNAIL_PX
from evaluation.probing.config import ProbeConfig
from evaluation.probing.probe import probe
from evaluation.results.results import Results

MakeRun = Callable[..., Path]

CLASSIFIERS = {
    f"classifiers/cell_{features}_{preset}"
    for features in ("untrained-backbone", "epoch-2")
    for preset in ("gazda2021", "rigorous")
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass
class Server:
    """A running TensorBoard."""

    url: str
    results: Results

    def get(self, path: str, **parameters: str) -> requests.Response:
        """Return the answer to a request for data."""
        answer = requests.get(f"{self.url}/data/{path}", params=parameters, timeout=60)
        answer.raise_for_status()
        return answer

    def json(self, path: str, **parameters: str) -> Any:
        return self.get(path, **parameters).json()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun, shards: Path) -> Iterator[Server]:
    """TensorBoard on the events of a run that was probed twice."""
    run = make_run(tmp_path_factory.mktemp("tensorboard") / "run", shards)
    config = ProbeConfig(
        run, ProbeData([str(shards)]), executor="torchvision", search="serial", untrained_seeds=2, few_labels=False,
        folds=2, bootstrap_resamples=100,
    )  # fmt: skip
    for _ in range(2):
        results = probe(config)
    log = run / "tensorboard.log"
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(run / "events"),
        "--port=0",
        "--host=127.0.0.1",
    ]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            yield Server(wait_for_runs(process, log), results)
        finally:
            process.terminate()


def wait_for_runs(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Return the address of a TensorBoard that has read its runs."""
    deadline_s = time.monotonic() + 600
    while time.monotonic() < deadline_s:
        assert process.poll() is None, log.read_text()
        words = [word for word in log.read_text().split() if word.startswith("http://127.0.0.1:")]
        if words:
            url = words[0].rstrip("/")
            if len(requests.get(f"{url}/data/runs", timeout=60).json()) == 2 + len(CLASSIFIERS):
                return url
        time.sleep(1)
    raise AssertionError(log.read_text())


def test_the_list_of_runs_is_short(server: Server) -> None:
    assert set(server.json("runs")) == {".", "probe"} | CLASSIFIERS


def test_curves_show_each_checkpoint_once_with_its_interval(server: Server) -> None:
    tags = server.json("plugin/scalars/tags")
    assert {tag for tag in tags["probe"] if tag.startswith("probe/")} == {
        f"probe/cell/{preset}/{score}" for preset in ("gazda2021", "rigorous") for score in ("auc", "acc")
    }
    points = server.json("plugin/scalars/scalars", run="probe", tag="probe_interval/cell/rigorous/auc_low")
    rows = [row for row in server.results.rows if row.preset == "rigorous" and row.kind == "checkpoint"]
    assert [(step, value) for _, step, value in points] == [
        (row.step, pytest.approx(row.scores.auc.low)) for row in rows
    ]
    charts = {page["title"]: page["chart"] for page in server.json("plugin/custom_scalars/layout")["category"]}
    assert [chart["title"] for chart in charts["AUC"]] == ["cell, gazda2021", "cell, rigorous"]
    assert charts["AUC"][1]["margin"]["series"] == [
        {
            "value": "probe/cell/rigorous/auc",
            "lower": "probe_interval/cell/rigorous/auc_low",
            "upper": "probe_interval/cell/rigorous/auc_high",
        }
    ]


def test_each_chosen_classifier_has_its_curves_and_one_row_of_hyperparameters(server: Server) -> None:
    run = "classifiers/cell_epoch-2_rigorous"
    roc = server.json("plugin/scalars/scalars", run=run, tag="roc/cell/rigorous")
    assert [step for _, step, _ in roc] == list(range(101)) and roc[-1][2] == 1
    curves = server.json("plugin/pr_curves/pr_curves", run=run, tag="precision_recall/cell/rigorous")
    assert [curve["step"] for curve in curves[run]] == [10] and curves[run][0]["recall"][0] == 1
    wanted = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "startIndex": 0, "sliceSize": 100}
    answer = requests.post(
        f"{server.url}/data/plugin/hparams/session_groups", json={**wanted, "colParams": []}, timeout=60
    )
    groups = {group["name"]: group["hparams"] for group in answer.json()["sessionGroups"]}
    assert set(groups) == CLASSIFIERS
    rows = {(row.features, row.preset): row for row in server.results.rows}
    shown = groups[run]
    assert (shown["set"], shown["features"], shown["preset"]) == ("cell", "epoch 2", "rigorous")
    assert [shown["C"]] == rows["epoch 2", "rigorous"].c


def test_the_projector_has_features_labels_and_thumbnails(server: Server) -> None:
    assert server.json("plugin/projector/runs") == ["probe"]
    embeddings = server.json("plugin/projector/info", run="probe")["embeddings"]
    names = [embedding["tensorName"] for embedding in embeddings]
    assert names == [f"cell, {features}" for features in ("untrained backbone, draw 1", "epoch 1", "epoch 2")]
    tensor = server.get("plugin/projector/tensor", run="probe", name=names[-1]).content
    assert np.frombuffer(tensor, np.float32).reshape(embeddings[-1]["tensorShape"]).shape[0] == 32
    header, *lines = server.get("plugin/projector/metadata", run="probe", name=names[-1]).text.splitlines()
    assert header.split("\t")[:2] == ["class", "key"]
    assert sorted({line.split("\t")[0] for line in lines}) == ["NORMAL", "PNEUMONIA"] and len(lines) == 32
    content = server.get("plugin/projector/sprite_image", run="probe", name=names[-1]).content
    sheet = np.asarray(Image.open(io.BytesIO(content)))
    assert sheet.shape == (6 * THUMBNAIL_PX, 6 * THUMBNAIL_PX)
    patches = [bright_patch(sheet, number) for number in range(32)]
    assert [patch > 110 for patch in patches] == [line.startswith("PNEUMONIA") for line in lines]


def bright_patch(sheet: Any, number: int) -> float:
    """Return the mean gray level where pneumonia is a brighter patch; see `write_blobs`."""
    row, column = divmod(number, 6)
    cell = sheet[row * THUMBNAIL_PX :, column * THUMBNAIL_PX :]
    return float(cell[14:27, 12:24].mean())
