from pathlib import Path

from evaluation.data.lineage import pretraining_shards
from sharding.reading.data_config import DataConfig
from sharding.reading.fetch import FetchConfig
from sharding.reading.shard_set import ShardSet
from tests.support.fault_server import serving


def test_shards_of_a_run_are_downloaded_as_the_probe_says_and_not_as_the_run_says(
    tmp_path: Path, simulated_shards: Path
) -> None:
    identity = ShardSet([simulated_shards]).identity
    with serving(simulated_shards) as server:
        data = DataConfig([server.url], fetch=FetchConfig(tmp_path / "of the run"))
        shards = pretraining_shards(data, identity, FetchConfig(tmp_path / "of the probe"))
        assert shards is not None
        assert len(shards.index(0)) == shards.shard_samples[0]
    assert [path.name for path in tmp_path.iterdir()] == ["of the probe"]
