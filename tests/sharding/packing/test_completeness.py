"""What a packing lacks ends with exit code 1, unless the user allows it."""

import multiprocessing
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from infra.errors import RunFailed, UserError
from launch.shard import main
from sharding.datasets.folder import FolderOptions
from sharding.format.sample import Sample
from sharding.images.encode import DAMAGED, MISSING
from sharding.packing.completeness import gaps
from sharding.packing.pack import PackConfig, pack
from tests.sharding.conftest import CsvWriter, RadiographMaker


@pytest.fixture
def config(tmp_path: Path, radiograph: RadiographMaker, csv_file: CsvWriter) -> PackConfig:
    """A table of 300 images in two splits and three classes, of which one class has a single image."""
    root = tmp_path / "root"
    (root / "images").mkdir(parents=True)
    content = root / "images" / "0.png"
    radiograph(0, 40, 40).save(content)
    rows = []
    for number in range(300):
        (root / "images" / f"{number}.png").write_bytes(content.read_bytes())
        label = "rare" if number == 7 else ("sick", "well")[number % 2]
        rows.append(f"images/{number}.png,{'test' if number >= 200 else 'train'},{label}")
    csv_file(root / "table.csv", "path,split,label", *rows)
    options = FolderOptions(csv=Path("table.csv"), split="split", label="label")
    return PackConfig("folder", root, tmp_path / "out", shorter_side_px=32, workers=1, folder=options)


def lose(config: PackConfig, *numbers: int) -> None:
    for number in numbers:
        (config.source / "images" / f"{number}.png").unlink()


def test_a_few_missing_files_are_counted_and_the_rest_is_packed(
    config: PackConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    lose(config, 1, 2, 3)
    manifest = pack(config)
    assert (manifest.samples, len(manifest.rejected)) == (297, 3)
    assert f"{config.out}: 297 images in " in capsys.readouterr().err


def test_more_missing_files_are_refused_before_anything_is_written(config: PackConfig) -> None:
    lose(config, 1, 2, 3, 4)
    first = config.source / "images"
    with pytest.raises(RunFailed, match=rf"^root=.* lacks 4 of 300 files, such as {first}/[1-4]\.png; .*_missing=true"):
        pack(config)
    assert not Path(config.out).exists()
    assert pack(replace(config, allow_missing=True)).samples == 296


def test_a_split_or_a_class_without_files_is_refused_before_anything_is_written(config: PackConfig) -> None:
    lose(config, 7)
    with pytest.raises(RunFailed, match="lacks the only image of class 'rare', such as"):
        pack(config)
    lose(config, *range(200, 300))
    with pytest.raises(RunFailed, match="of class 'rare', all 100 images of split test, 101 of 300 files, such as"):
        pack(config)
    assert not Path(config.out).exists()


def test_a_class_whose_images_are_all_damaged_ends_with_exit_code_1_each_time(
    config: PackConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.source / "images" / "7.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    words = ["folder", f"--root={config.source}", f"--out={config.out}", "--shorter_side_px=32", "--workers=1"]
    words += ["--folder.csv=table.csv", "--folder.split=split", "--folder.label=label"]
    for _ in range(2):
        with pytest.raises(RunFailed, match=r"is packed without the only image of class 'rare'; manifest\.json lists"):
            main(words)
    assert main([*words, "--allow_missing=true"]) == 0
    assert "nothing to do" in capsys.readouterr().err


def test_a_part_that_is_not_there_at_all_is_refused_before_anything_is_written(cell_root: Path, tmp_path: Path) -> None:
    shutil.rmtree(cell_root / "val" / "PNEUMONIA")
    (cell_root / ".DS_Store").touch()
    config = PackConfig("cell", cell_root, tmp_path / "out", shorter_side_px=32, workers=1)
    with pytest.raises(
        RunFailed, match=r"^root=.* lacks val/PNEUMONIA; complete the folder, or pack what is there with"
    ):
        pack(config)
    assert not (tmp_path / "out").exists()
    assert pack(replace(config, allow_missing=True)).samples == 56
    with pytest.raises(RunFailed, match="is packed without val/PNEUMONIA;"):
        pack(config)


def test_nothing_to_pack_names_the_first_file_that_was_tried(config: PackConfig) -> None:
    lose(config, *range(300))
    with pytest.raises(UserError, match=rf"300 x missing file, such as {config.source}/images/\d+\.png; check root"):
        pack(replace(config, allow_missing=True))


def test_gaps_count_labels_that_are_present_and_nothing_else() -> None:
    samples = [
        Sample(f"{number}", Path(f"{number}.png"), "p", split="val", labels={"Mass": 1 if number else 0, "Edema": -1})
        for number in range(3)
    ]
    assert gaps(samples, {}) == []
    assert gaps(samples, {"1.png": DAMAGED}) == []
    assert gaps(samples, {"1.png": DAMAGED, "2.png": DAMAGED}) == ["all 2 images of class 'Mass'"]
    assert gaps(samples, {"0.png": MISSING}) == ["1 of 3 files"]


@pytest.mark.parametrize(("root", "out"), [(".", "shards"), (".", "."), ("a/root", "a"), (".", "file://{}/shards")])
def test_shards_may_not_lie_among_the_images_nor_images_among_the_shards(root: str, out: str, tmp_path: Path) -> None:
    (tmp_path / root).mkdir(parents=True, exist_ok=True)
    place = out.format(tmp_path) if "{}" in out else tmp_path / out
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"^out=.* and root=.* must not contain one another, .* folder for out$"):
        pack(PackConfig("folder", tmp_path / root, place, workers=1))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_worker_that_is_killed_changes_no_byte(config: PackConfig, tmp_path: Path) -> None:
    pack(config)

    def kill_one() -> None:
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        children[0].kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    other = replace(config, out=tmp_path / "other", workers=2)
    manifest = pack(other)
    killer.join()
    assert manifest.rejected == []
    for shard in manifest.shards:
        assert (Path(config.out) / shard.name).read_bytes() == (tmp_path / "other" / shard.name).read_bytes()
