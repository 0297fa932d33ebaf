"""What the card and the report say of a run's shards."""

import shutil
from pathlib import Path

from evaluation.report.shard_folders import are_of_run, shard_folders
from sharding.reading.data_config import DataConfig
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import packed_metadata
from tests.support.follow_ups import pack_follow_ups, write_follow_ups


def test_only_images_and_patients_of_the_chosen_splits_and_fraction_count_as_used(tmp_path: Path) -> None:
    packed = pack_follow_ups(write_follow_ups(tmp_path / "raw"), tmp_path / "packed")
    for splits in (["train"], ["test"], []):
        expected = [record["patient"] for record in packed_metadata(ShardSet([packed], splits))]
        [folder] = shard_folders(DataConfig([str(packed)], splits))
        assert folder.used is not None
        assert (folder.used.images, folder.used.patients) == (len(expected), len(set(expected)))
    [few] = shard_folders(DataConfig([str(packed)], fraction_percent=10))
    assert few.used is not None
    assert 0 < few.used.images < ShardSet([packed]).samples
    assert few.used.images == ShardSet([packed], fraction_percent=10).samples


def test_what_a_run_used_is_unknown_if_its_shards_are_gone_or_others(tmp_path: Path) -> None:
    packed = pack_follow_ups(write_follow_ups(tmp_path / "raw"), tmp_path / "packed")
    data, identity = DataConfig([str(packed)], ["train"]), ShardSet([packed], ["train"]).identity
    assert are_of_run(shard_folders(data), identity)
    assert not are_of_run(shard_folders(DataConfig([str(packed)])), identity)
    for index in packed.glob("*.index.npy"):
        index.unlink()
    [folder] = shard_folders(data)
    assert (folder.used, folder.manifest is None) == (None, False)
    shutil.rmtree(packed)
    [folder] = shard_folders(data)
    assert (folder.used, folder.manifest) == (None, None)
