"""Features of images from shards and files: the probe's own, in each format, also after a killed command."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from pyarrow import parquet

from evaluation.inference import embed as embedding
from evaluation.inference.config import EmbedConfig
from evaluation.inference.embed import Embedded, embed
from evaluation.inference.embedder import Embedder
from evaluation.results.kept_probes import KeptProbes
from infra.arrays import Float32
from infra.errors import RunFailed, UserError
from infra.ranks.processes import Ranks
from sharding.datasets.dicom import DicomOptions
from sharding.packing.pack import PackConfig, pack
from sharding.reading.shard_set import ShardSet
from tests.support.dicom_files import dicom_bytes


def embedded(out: Path, run: Path, *source: Path, **options: Any) -> Embedded:
    config = EmbedConfig(list(map(str, source)), str(run), out, executor="torchvision", workers=1, **options)
    return embed(config, Ranks())


def stored_features(run: Path) -> Float32:
    kept = next(probe for probe in KeptProbes(run).probes if probe.kind == "checkpoint")
    features: Float32 = safetensors.numpy.load_file(run / kept.features_file)["features"]
    return features


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def rows_of(out: Path) -> tuple[list[dict[str, Any]], Float32]:
    """Return what identifies the images, and their features (n, D), with pyarrow alone."""
    table = parquet.read_table(out)
    return table.drop_columns(["features"]).to_pylist(), np.stack(table["features"].to_numpy())


def test_shards_give_the_features_of_the_probe_to_the_last_bit(probed: Path, shards: Path, tmp_path: Path) -> None:
    result = embedded(tmp_path / "features.parquet", probed, shards)
    rows, features = rows_of(tmp_path / "features.parquet")
    assert (result.images, result.refused) == (116, [])
    assert features.tobytes() == stored_features(probed).tobytes()
    packed = ShardSet([shards])
    for number in (0, 64, 115):
        shard, row = map(int, packed.locate(number))
        assert rows[number] == {
            "key": packed.key(shard, row),
            "path": None,
            "patient": f"{packed.row(shard, row)['patient']:016x}",
            "dataset": "cell",
            "split": packed.shards[shard].split,
            "sha256": sha256(packed.read(shard, row).tobytes()).hexdigest(),
        }
    about = json.loads(parquet.read_schema(tmp_path / "features.parquet").metadata[b"sternum"])
    assert (about["backbone"], about["preprocessing"]["size_px"], about["encoding"]) == ("resnet18", 32, None)
    assert names_in(tmp_path) == ["features.parquet"]


def test_files_give_the_features_of_their_packed_images_in_every_format(
    probed: Path, raw: Path, shards: Path, tmp_path: Path
) -> None:
    for name in ("a.parquet", "a.csv", "a.npz"):
        embedded(tmp_path / name, probed, raw / "test")
    rows, features = rows_of(tmp_path / "a.parquet")
    packed = ShardSet([shards])
    numbers = {packed.key(*map(int, packed.locate(number))): number for number in range(packed.samples)}
    order = [numbers["_".join(Path(row["path"]).with_suffix("").parts[-3:])] for row in rows]
    np.testing.assert_allclose(features, stored_features(probed)[order], atol=1e-5)
    assert [row["sha256"] for row in rows] == [sha256(Path(row["path"]).read_bytes()).hexdigest() for row in rows]
    with (tmp_path / "a.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["key"] for line in lines] == [row["key"] for row in rows]
    again = np.array([[line[f"feature_{column}"] for column in range(512)] for line in lines], np.float32)
    assert again.tobytes() == features.tobytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert arrays["features"].tobytes() == features.tobytes()
        assert arrays["path"].tolist() == [row["path"] for row in rows]
        assert set(arrays["patient"].tolist()) == {""}


@pytest.mark.parametrize("name", [None, "hospital-d"])
def test_dicom_files_have_the_keys_and_patients_of_their_packing(
    name: str | None, probed: Path, tmp_path: Path
) -> None:
    films, key = tmp_path / "films" / "Doe^Jane", tmp_path / "key"
    films.mkdir(parents=True)
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for number in range(3):
        content = dicom_bytes(np.roll(ramp, 9 * number, axis=1), PatientID=f"patient {number % 2}")
        (films / f"{number}.dcm").write_bytes(content)
    (films / "ct.dcm").write_bytes(dicom_bytes(ramp, Modality="CT"))
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    root = films.parent
    packing = PackConfig("dicom", root, tmp_path / "packed", shorter_side_px=40, workers=1, dicom=DicomOptions(key))
    pack(replace(packing, name=name))
    result = embedded(tmp_path / "of_files.parquet", probed, root, pseudonym_key=key, name=name)
    embedded(tmp_path / "of_shards.parquet", probed, tmp_path / "packed")
    (of_files, features), (of_shards, others) = (
        rows_of(tmp_path / f"of_{name}.parquet") for name in ("files", "shards")
    )
    by_key = {
        row["key"]: (row["patient"], row["dataset"], values) for row, values in zip(of_shards, others, strict=True)
    }
    for row, values in zip(of_files, features, strict=True):
        patient, dataset, expected = by_key.pop(row["key"])
        assert (row["patient"], row["dataset"], row["path"]) == (patient, dataset, None)
        assert dataset == (name or "dicom")
        np.testing.assert_allclose(values, expected, atol=1e-5)
    assert not by_key
    assert [item.reason for item in result.refused] == ["modality CT, not CR, DX, RG"]
    assert b"Doe" not in (tmp_path / "of_files.parquet").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a"}, "name=a is for DICOM files with pseudonyms; name their key too: pseudonym_key"),
        ({"name": "a b", "pseudonym_key": Path("key")}, "name=a b must have 1 to 40 letters"),
        ({"name": "cell", "pseudonym_key": Path("key")}, "name=cell is the name of another dataset; try cell-dicom"),
    ],
)
def test_name_that_packing_would_not_give_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EmbedConfig(["films"], "run", Path("f.csv"), **options)


def test_key_of_pseudonyms_is_refused_for_shards_which_have_theirs(probed: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pseudonym_key=key is for DICOM files, but source names shards"):
        embedded(tmp_path / "features.csv", probed, shards, pseudonym_key=Path("key"))
    assert not list(tmp_path.iterdir())


def test_broken_file_is_listed_and_all_others_are_embedded(probed: Path, raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw / "val", tmp_path / "films")
    broken = tmp_path / "films" / "NORMAL" / "broken.jpeg"
    broken.write_bytes(next((raw / "val" / "NORMAL").iterdir()).read_bytes()[:300])
    out = tmp_path / "features.csv"
    result = embedded(out, probed, tmp_path / "films")
    assert result.images == 4
    listed = (tmp_path / "features.refused.csv").read_text()
    assert listed == f"path,reason\n{broken},truncated or damaged image\n"
    broken.unlink()
    embedded(out, probed, tmp_path / "films")
    assert not (tmp_path / "features.refused.csv").exists()


def test_killed_command_continues_and_ends_with_the_same_file(
    probed: Path, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedding, "BATCHES_A_PART", 1)
    source, options = raw / "test", {"local_batch": 4}  # eight parts
    embedded(tmp_path / "whole.csv", probed, source, **options)
    computed: list[int] = []
    features = Embedder.features

    def dies_after_three_parts(self: Embedder, *arguments: Any) -> Float32:
        if len(computed) == 3:
            raise KeyboardInterrupt
        computed.append(1)
        return features(self, *arguments)

    out = tmp_path / "features.csv"
    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "features", dies_after_three_parts)
        with pytest.raises(KeyboardInterrupt):
            embedded(out, probed, source, **options)
    assert not out.exists()
    embedded(out, probed, source, **options)
    assert "3 of 8 parts are finished already" in capfd.readouterr().err
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert names_in(tmp_path) == ["features.csv", "whole.csv"]


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        (["empty"], "f.csv", "empty holds no file; name a folder of images"),
        (["nothing"], "f.csv", "nothing does not exist; name image files"),
        (["empty"], "f.xlsx", r"out=.*f\.xlsx must end with \.parquet, \.csv, \.npz"),
        (["shards", "empty"], "f.csv", "names both shards .* and image files; name one kind at a time"),
        (["a", "b"], "f.csv", r"a/x\.png and .*b/x\.png would have the same key; name the folder above both"),
    ],
)
def test_what_cannot_be_embedded_is_one_line(
    probed: Path, shards: Path, tmp_path: Path, source: Sequence[str], out: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "shards").symlink_to(shards)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").touch()
    with pytest.raises(UserError, match=message):
        embedded(tmp_path / out, probed, *(tmp_path / name for name in source))
    assert not (tmp_path / out).exists()


def test_folder_without_images_and_folder_without_checkpoints_are_one_line(probed: Path, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no image")
    with pytest.raises(RunFailed, match=r"no file is an image .* the first of 1, .*notes\.txt: not an image"):
        embedded(tmp_path / "f.csv", probed, tmp_path / "text")
    with pytest.raises(UserError, match="a folder without checkpoints"):
        embedded(tmp_path / "f.csv", tmp_path / "text", tmp_path / "text")


@pytest.mark.slow
def test_two_processes_write_the_file_of_one(probed: Path, shards: Path, tmp_path: Path) -> None:
    options = [str(shards), f"--backbone={probed}", "--executor=torchvision", "--local_batch=16"]
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "launch.embed"]
    for words, out in ((["-m", "launch", "embed"], one), (launcher, two)):
        subprocess.run([sys.executable, *words, *options, f"--out={out}"], check=True, timeout=250)
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
def test_command_killed_at_any_moment_leaves_no_half_file(probed: Path, raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.csv"
    words = ["embed", str(raw), f"--backbone={probed}", "--local_batch=4", f"--out={out}", "--workers=2"]
    for wait_s in (4.0, 5.0, 6.0, 7.0):
        process = subprocess.Popen([sys.executable, "-m", "launch", *words])
        time.sleep(wait_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists() or len(out.read_text().splitlines()) == 117
    subprocess.run([sys.executable, "-m", "launch", *words], check=True, timeout=250)
    assert len(out.read_text().splitlines()) == 117
    assert names_in(tmp_path) == ["features.csv"]
