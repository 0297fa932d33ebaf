"""The rule by which all readers find files: what counts as a file, and what is rejected with which reason."""

import os
import socket
from pathlib import Path

import pytest

from sharding.datasets.files import leads_out, visible_files
from sharding.format.manifest import Rejection


def found(root: Path, *, follow_links: bool = False) -> tuple[list[str], dict[str, str]]:
    """Return the files, and the reason of each rejection."""
    items = list(visible_files(root, follow_links=follow_links))
    files = [item.as_posix() for item in items if isinstance(item, Path)]
    return files, {item.path: item.reason for item in items if isinstance(item, Rejection)}


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_files_are_sorted_folder_by_folder(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.png", "b/1.png", "a/x/1.png", "a/1.png", "c.png")
    assert found(tmp_path) == (["c.png", "a/1.png", "a/x/1.png", "b/1.png", "b/2.png"], {})


@pytest.mark.parametrize(
    "name",
    [
        *(".DS_Store", "._1.png", "Thumbs.db", "THUMBS.DB", "desktop.ini", "Icon\r"),
        *(".git/x", "__MACOSX/a/1.png", "lost+found/1.png", "$RECYCLE.BIN/1.png", "@eaDir/1.png"),
        "System Volume Information/x",
    ],
)
def test_hidden_and_system_files_are_counted_at_any_depth(name: str, tmp_path: Path) -> None:
    touch(tmp_path, name, f"a/b/{name}", "a/b/1.png")
    top = Path(name).parts[0]
    reason = "hidden or system file"
    assert found(tmp_path) == (["a/b/1.png"], {top: reason, f"a/b/{top}": reason})


def test_pipes_sockets_and_links_to_them_are_never_opened(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "link.png").symlink_to("pipe.png")
    (tmp_path / "a" / "null.png").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "a" / "socket"))
        files, rejected = found(tmp_path, follow_links=True)
    reason = "neither a file nor a folder"
    assert files == ["a/1.png"]
    assert rejected == dict.fromkeys(("a/pipe.png", "a/link.png", "a/null.png", "a/socket"), reason)


def test_links_out_of_the_root_are_followed_only_on_request(tmp_path: Path) -> None:
    touch(tmp_path, "root/a/1.png", "private/2.png", "private/more/3.png")
    root = tmp_path / "root"
    (root / "a" / "file.png").symlink_to(tmp_path / "private" / "2.png")
    (root / "a" / "folder").symlink_to(tmp_path / "private")
    (root / "a" / "again").symlink_to(tmp_path / "private")
    (tmp_path / "private" / "more" / "cycle").symlink_to(tmp_path / "private")
    (tmp_path / "private" / "back").symlink_to(root)
    reason = "link out of root; follow_links=true packs it"
    assert found(root) == (["a/1.png"], dict.fromkeys(("a/file.png", "a/folder", "a/again"), reason))
    files, rejected = found(root, follow_links=True)
    assert files == ["a/1.png", "a/file.png", "a/again/2.png", "a/again/more/3.png"]
    assert rejected == dict.fromkeys(("a/folder", "a/again/back", "a/again/more/cycle"), "link to a folder")


def test_links_within_the_root_are_files_and_never_folders(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png")
    (tmp_path / "a" / "2.png").symlink_to("1.png")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "none.png").symlink_to("absent.png")
    (tmp_path / "self.png").symlink_to("self.png")
    assert found(tmp_path) == (
        ["none.png", "self.png", "a/1.png", "a/2.png"],
        {"b": "link to a folder", "up": "link to a folder"},
    )


def test_a_root_that_is_a_link_is_no_link_out(tmp_path: Path) -> None:
    touch(tmp_path, "real/a/1.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert found(tmp_path / "link") == (["a/1.png"], {})
    assert not leads_out(tmp_path / "link", Path("a/1.png"))


def test_a_path_leads_out_when_any_part_of_it_is_a_link_out(tmp_path: Path) -> None:
    touch(tmp_path, "root/a/1.png", "elsewhere/1.png")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "a" / "2.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    paths = ("a/1.png", "a/2.png", "b/1.png", "absent/1.png", "nul\0.png")
    assert [leads_out(tmp_path / "root", Path(path)) for path in paths] == [False, True, True, False, False]


def test_a_deep_tree_is_read(tmp_path: Path) -> None:
    deep = tmp_path / Path(*["d"] * 300)
    deep.mkdir(parents=True)
    (deep / "1.png").touch()
    files, _ = found(tmp_path)
    assert len(files) == 1
