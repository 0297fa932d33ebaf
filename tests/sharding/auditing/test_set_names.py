from collections.abc import Callable
from pathlib import Path

import pytest

from infra.errors import UserError
from sharding.auditing.set_names import require_one_set_per_name
from sharding.datasets.folder import FolderOptions
from sharding.packing.pack import PackConfig, pack
from sharding.reading.shard_set import ShardSet
from tests.support.pictures import picture

PackSite = Callable[..., Path]


@pytest.fixture
def pack_site(tmp_path: Path) -> PackSite:
    """Pack a folder of six images with the file names of every other site, but of its own patients' pictures."""

    def make(site: int, name: str | None = None, shorter_side_px: int = 64) -> Path:
        root, out = tmp_path / f"site-{site}", tmp_path / f"shards-{site}-{name}-{shorter_side_px}"
        (root / "normal").mkdir(parents=True, exist_ok=True)
        for number in range(6):
            picture(100 * site + number).save(root / "normal" / f"{number}.png")
        pack(PackConfig("folder", root, out, name=name, shorter_side_px=shorter_side_px, workers=1))
        return out

    return make


def identities(folder: Path) -> set[int]:
    index = ShardSet([folder]).whole_index()
    return {int(value) for kind in ("sample", "patient", "study") for value in index[kind]}


def test_two_sites_with_equal_file_names_are_refused_under_one_name(pack_site: PackSite) -> None:
    with pytest.raises(UserError) as refused:
        require_one_set_per_name(ShardSet([pack_site(1), pack_site(2)]))
    message = str(refused.value)
    assert "both have the name 'folder', but their keys name different pictures (6 of 6 compared)" in message
    assert message.endswith("pack one of them with another --name, such as folder-b")


def test_two_sites_with_equal_file_names_share_nothing_under_their_names(pack_site: PackSite) -> None:
    folders = [pack_site(1, "hospital-a"), pack_site(2, "hospital-b")]
    require_one_set_per_name(ShardSet(folders))
    assert not identities(folders[0]) & identities(folders[1])


def test_one_set_in_two_sizes_or_in_two_lists_is_one_set(pack_site: PackSite) -> None:
    large, small = ShardSet([pack_site(1)]), ShardSet([pack_site(1, shorter_side_px=32)])
    require_one_set_per_name(large, small, ShardSet([pack_site(1), pack_site(3, "other")]))


def test_patients_of_equal_numbers_in_unnamed_sets_are_named_in_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], csv_file: Callable[..., None]
) -> None:
    folders = []
    for site in ("a", "b"):
        root = tmp_path / site
        csv_file(root / "table.csv", "path,patient", *(f"{site}{number}.png,{number}" for number in range(4)))
        for number in range(4):
            picture(number, 32).save(root / f"{site}{number}.png")
        options = FolderOptions(csv=Path("table.csv"), patient="patient")
        folders.append(tmp_path / f"shards-{site}")
        pack(PackConfig("folder", root, folders[-1], folder=options, workers=1))
    capsys.readouterr()
    require_one_set_per_name(ShardSet(folders))
    assert "so their 4 patients of equal names count as the same" in capsys.readouterr().err
