"""A probe of backbones without a run, and what the other commands make of its folder."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torchvision.models import get_model

from evaluation.data.backbones.opened import InputOptions
from evaluation.data.labeled_sets import ProbeData
from evaluation.fitting.finetuning.config import FinetuneConfig
from evaluation.probing.config import ProbeConfig
from evaluation.probing.probe import probe
from evaluation.results.notes import NO_RUN_NOTE
from evaluation.results.results import read_results
from infra.errors import UserError
from infra.storage.files import sha256_file
from launch.cli import main as sternum
from tests.support.tiny_resnet import TINY_RESNET


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two state dicts of one network, one behind the prefix of DataParallel."""
    folder = tmp_path_factory.mktemp("weights")
    for name, prefix in (("mine", ""), ("other", "module.")):
        state = get_model(TINY_RESNET).state_dict()
        torch.save({f"{prefix}{key}": value for key, value in state.items()}, folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in ("mine", "other")}


def config_of(weights: dict[str, Path], shards: Path, **changes: Any) -> ProbeConfig:
    small: dict[str, Any] = {
        "data": ProbeData([str(shards)]),
        "presets": ["rigorous"],
        "untrained_seeds": 1,
        "few_labels": False,
        "executor": "torchvision",
        "search": "serial",
        "folds": 2,
        "bootstrap_resamples": 100,
        "pictures": False,
        "backbones": [f"{name}={path}@{TINY_RESNET}" for name, path in weights.items()],
        "input": InputOptions(size_px=32),
    }
    return ProbeConfig(**(small | changes))


@pytest.fixture(scope="module")
def probed(weights: dict[str, Path], shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("probed") / "backbones"
    probe(config_of(weights, shards, out=out))
    return out


def test_the_first_backbone_stands_where_a_run_has_its_last_checkpoint(probed: Path, weights: dict[str, Path]) -> None:
    results = read_results(probed)
    assert results is not None and results.run is None
    kinds = {row.features: row.kind for row in results.rows}
    assert (kinds["mine"], kinds["other"], kinds["untrained backbone"]) == ("checkpoint", "compared", "untrained")
    assert {"pixels", "border", "attributes", "shuffled", "shuffled_over_all"} <= set(kinds.values())
    assert {item.features for item in results.comparisons} == {"mine"}
    assert {item.other for item in results.comparisons} >= {"other", "untrained backbone", "32 x 32 raw pixels"}
    assert [item.sha256 for item in results.outside] == [sha256_file(path) for path in weights.values()]
    assert "prefix 'module.'" in results.outside[1].summary
    assert results.datasets[0].pretrained_images is None
    assert NO_RUN_NOTE in results.notes


def test_report_table_and_compare_read_its_folder(
    probed: Path, weights: dict[str, Path], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sternum(["report", str(probed)]) == 0
    page = (probed / "report.html").read_text()
    assert "compares networks that were trained elsewhere: mine, other." in page
    assert sha256_file(weights["other"])[:16] in page
    assert "the first backbone (mine) minus that of others" in page
    assert "checkpoint" not in page.split("<style>")[0] and "Pretraining, without labels" not in page
    assert sternum(["table", str(probed), "--preset=rigorous", f"--out={tmp_path}"]) == 0
    rows = (tmp_path / "table3.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows[1:3]] == ["mine", "other"]
    swapped = {name: weights[name] for name in ("other", "mine")}
    probe(config_of(swapped, shards, out=tmp_path / "swapped", controls=False))
    capsys.readouterr()
    assert sternum(["compare", str(probed), str(tmp_path / "swapped"), f"--out={tmp_path}"]) == 0
    assert "or the first of backbones without one" in capsys.readouterr().out
    assert sternum(["compare", f"a={probed},{tmp_path / 'swapped'}", str(probed), f"--out={tmp_path}"]) == 2
    assert "is a probe of backbones without a run, so it is no seed of a recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbones": []}, r"nothing to probe: name a run \(sternum probe RUN_FOLDER\), or backbones without one"),
        ({"out": None}, r"backbones=\[.*\] needs a folder for the results: --out=FOLDER"),
        ({"run_folder": Path("run")}, "are probed without a run; put them beside one with compare"),
        ({"run_folder": Path("run"), "backbones": []}, "out=out is for backbones; a run keeps its results"),
        ({"compare": ["a=b"]}, r"compare=\[a=b\] needs a run; add them to backbones"),
        ({"checkpoints": "last"}, "checkpoints=last needs a run; remove it"),
        ({"select": True}, "select=True needs a run; remove it"),
        ({"watch": True}, "watch=True needs a run; remove it"),
        ({"finetune": FinetuneConfig(epochs=1)}, r"epochs=1 needs a run; leave it out"),
    ],
)
def test_options_that_contradict_each_other_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_of({"a": Path("weights.pth")}, Path("shards"), **({"out": Path("out")} | changes))


def test_the_results_of_a_run_are_not_replaced(run: Path, weights: dict[str, Path], shards: Path) -> None:
    with pytest.raises(UserError, match="is the folder of a run, whose results would be replaced; name another one"):
        probe(config_of(weights, shards, out=run))


def test_nothing_is_left_behind_by_weights_that_do_not_fit(
    weights: dict[str, Path], shards: Path, tmp_path: Path
) -> None:
    config = config_of(weights, shards, out=tmp_path / "out", backbones=[f"mine={weights['mine']}@resnet18"])
    with pytest.raises(UserError, match="does not hold a resnet18"):
        probe(config)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_resnet50s_of_torchvision_and_timm_score_alike_beside_a_run_and_without_one(
    run: Path, shards: Path, tmp_path: Path
) -> None:
    networks = {
        "of torchvision": (torchvision.models.resnet50(weights=None), "module.", "resnet50"),
        "of timm": (timm.create_model("resnet50"), "backbone.", "timm/resnet50"),
    }
    words = []
    for name, (model, prefix, network) in networks.items():
        path = tmp_path / f"{name}.pth"
        torch.save({f"{prefix}{key}": value for key, value in model.state_dict().items()}, path)
        words.append(f"{name}={path}@{network}")
    beside = probe(config_of({}, shards, run_folder=run, checkpoints="last", backbones=[], compare=words))
    alone = probe(config_of({}, shards, out=tmp_path / "out", backbones=words))
    for item in (beside, alone):
        assert [backbone.summary.split("; ")[1] for backbone in item.outside] == [
            "prefix 'module.'",
            "prefix 'backbone.'",
        ]
        assert all("skipped the classifier: 2" in backbone.summary for backbone in item.outside)
    for name in networks:
        scores = [[row.scores for row in item.rows if row.features == name] for item in (beside, alone)]
        assert scores[0] == scores[1] != []
    assert {item.other for item in beside.comparisons} >= set(networks)
    assert {(item.features, item.other) for item in alone.comparisons} >= {("of torchvision", "of timm")}
