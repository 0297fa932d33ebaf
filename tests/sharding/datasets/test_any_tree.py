"""Whatever a folder holds, each reader accounts for every file and row of it, or refuses it in one line."""

import csv
import os
import shutil
import tarfile
import tempfile
from collections import Counter
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.errors import RunFailed, UserError
from sharding.datasets import OPTIONS, READERS, chestxray14, chexpert
from sharding.datasets.folder import FolderOptions
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample
from sharding.packing.pack import PackConfig, pack

BATCH = "CheXpert-v1.0 batch 2 (train 1)"
FOLDERS = [
    *("", "train", "valid", "test", "NORMAL", "PNEUMONIA", "images", "images_001", "P", "N", "sick", "volumes"),
    *(".git", "__MACOSX", "patient1", "study1", "a b", "\u00fc", BATCH),
]
FILES = [
    *("1.png", "2.PNG", "1", "x", "person1_virus_2.jpeg", "IM-0001-0001.jpeg", "view1_frontal.jpg", "._1.png"),
    *("Thumbs.db", "train.csv", "metadata.csv", "severity.csv", "t.csv", "train_val_list.txt"),
    os.fsdecode(b"\xff.png"),
]
LINKS = ("1.png", "..", "../..", ".", "self", "/", "/dev/zero", "/etc/hostname", "absent", "images", "train")
ODD = [
    *("", " ", "nan", "NULL", "?", "-", "unknown", "\ufeff", "\0", "0", "-1", "1e9", "1.0", "x" * 300),
    *("a\nb", 'a"b', "=1"),
]
TEXTS: dict[str, tuple[str, ...]] = {
    "Path": ("R/train/patient1/study1/view1_frontal.jpg", "train/patient1/study1/view1_frontal.jpg", "R/../../x.jpg"),
    "Image Index": ("1.png", "2.PNG", "../1.png", "/etc/passwd"),
    "filename": ("1.png", "2.PNG", "../1.png", "/etc/passwd"),
    "path": ("1.png", "images/1.png", "sick/2.PNG", "../1.png", "/etc/passwd", "t.csv", "."),
    "Patient ID": ("1", "0001", "0"),
    "patientid": ("1", "2b"),
    "patient": ("1", "2b"),
    "Finding Labels": ("Mass", "Mass|Hernia", "No Finding", "Mass|"),
    "finding": ("COVID-19", "COVID-19, ARDS", "Pneumonia/Viral/SARS", "todo", "/"),
    "modality": ("X-ray", "CT"),
    "folder": ("images", "volumes"),
    "split": ("train", "Validation", "test"),
    "label": ("sick", "well", "None"),
    "Age": ("50", "050Y", "003D", "50+", "414"),
    "day": ("0", "-380", "20180115", "2018-01-15"),
    "Name": ("1", "2"),
    "Severity": ("MILD", "normal-pcr+"),
}
FOLDER_COLUMNS = ("path", "patient", "split", "label", "view", "sex", "age", "study", "day")
TABLES = {
    "chexpert": ("train.csv", chexpert.COLUMNS),
    "chestxray14": ("Data_Entry_2017.csv", chestxray14.COLUMNS),
    "c19-cohen": (
        "metadata.csv",
        ("patientid", "offset", "sex", "age", "finding", "view", "modality", "folder", "filename"),
    ),
    "covidgr": ("severity.csv", ("Name", "Severity")),
    "folder": ("t.csv", FOLDER_COLUMNS),
}
LAYOUTS = {
    "chexpert": ("train/patient1/study1/view1_frontal.jpg",),
    "chestxray14": ("images/1.png", "images_001/images/2.PNG"),
    "cell": ("train/NORMAL/IM-0001-0001.jpeg", "test/PNEUMONIA/person1_virus_2.jpeg"),
    "c19-cohen": ("images/1.png",),
    "covidgr": ("P/1.png", "N/1.png"),
    "folder": ("sick/1.png", "well/1.png"),
    "dicom": ("1",),
    "webdataset": ("0.tar", "train/1.tar"),
}
LISTS = ("train_val_list.txt", "test_list.txt")
# A rejection for a file or a part of the dataset; all others are for rows.
FILE_REASONS = ("file without", "hidden or", "link", "neither a", "path is not UTF-8", "missing part", "table that")


@st.composite
def trees(draw: st.DrawFn) -> list[tuple[str, str, str]]:
    """Draw (kind, path, content) of what a root holds beside a dataset."""
    folders = st.lists(st.sampled_from(FOLDERS), max_size=3).map("/".join)
    entries = []
    for folder in draw(st.lists(folders, max_size=6)):
        kind = draw(st.sampled_from(("file", "file", "folder", "pipe", "link")))
        content = draw(st.sampled_from(LINKS)) if kind == "link" else ""
        entries.append((kind, f"{folder}/{draw(st.sampled_from((*FILES, *FOLDERS[1:])))}".strip("/"), content))
    return entries


@st.composite
def tables(draw: st.DrawFn, columns: tuple[str, ...]) -> tuple[bytes, int]:
    """Draw the content of a table and the number of its rows."""
    header = [*columns, *draw(st.lists(st.sampled_from((*columns, "other", "")), max_size=1))]
    if draw(st.integers(0, 9)) == 0:
        header = draw(st.permutations(header))[1:]
    rows = []
    for _ in range(draw(st.integers(0, 5))):
        known = [TEXTS[name] if name in TEXTS and draw(st.integers(0, 3)) else ODD for name in header]
        cells = [draw(st.sampled_from(texts)) for texts in known]
        length = draw(st.sampled_from((None, None, None, None, None, 3)))
        rows.append(cells[:length] + draw(st.sampled_from(([], [], [""]))))
    file = StringIO()
    writer = csv.writer(file, delimiter=draw(st.sampled_from((",", ";", "\t"))))
    writer.writerows([header, *rows])
    content = file.getvalue().encode(draw(st.sampled_from(("utf-8", "utf-8-sig", "utf-16"))))
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(content)))
        content = content[:at] + draw(st.binary(max_size=4)) + content[at:]
        return content, -1
    return content, sum(any(map(str.strip, cells)) for cells in rows)


def build(root: Path, dataset: str, tree: list[tuple[str, str, str]]) -> None:
    """Write a small dataset and the drawn entries that fit beside it."""
    for name in LAYOUTS[dataset]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(root / name, "PNG")
        if name.endswith(".tar"):
            (root / name).rename(root / "1.png")
            with tarfile.open(root / name, "w") as tar:
                tar.add(root / "1.png", "1.png")
            (root / "1.png").unlink()
    for kind, path, content in tree:
        with suppress(OSError):  # a file where this needs a folder, or a name that is taken
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            if kind == "link":
                (root / path).symlink_to(content)
            elif kind == "pipe":
                os.mkfifo(root / path)
            elif kind == "folder":
                (root / path).mkdir()
            elif not (root / path).exists():
                (root / path).touch()


def unaccounted(root: Path, items: list[Sample | Rejection], read: set[str]) -> list[str]:
    """Return the files below `root` that no item stands for, apart from the tables that were read."""
    named = {str(item.file if isinstance(item, Sample) else item.path) for item in items} | read
    files = [Path(folder, name).relative_to(root) for folder, _, names in os.walk(root) for name in names]
    return [str(path) for path in files if not any(str(place) in named for place in (path, *path.parents))]


def check(dataset: str, tree: list[tuple[str, str, str]], table: tuple[bytes, int] | None, lists: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        root.mkdir()
        read = set()
        if table is not None:
            read.add(TABLES[dataset][0])
            (root / TABLES[dataset][0]).write_bytes(table[0])
        for name, content in zip(LISTS, lists, strict=False):
            read.add(name)
            (root / name).write_bytes(content)
        build(root, dataset, tree)
        options: Any = OPTIONS[dataset]() if dataset in OPTIONS else None
        if dataset == "folder" and table is not None:
            options = FolderOptions(Path("t.csv"), **dict[str, Any](zip(FOLDER_COLUMNS, FOLDER_COLUMNS, strict=True)))
        try:
            items = list(READERS[dataset](root, *([options] if options else [])))
        except UserError as error:
            assert "\n" not in str(error)
            return
        assert max(Counter(item.path for item in items if isinstance(item, Sample)).values(), default=1) == 1
        others = unaccounted(root, items, read | {"valid.csv", "severity.csv" if dataset == "covidgr" else ""})
        assert others == []
        if table is not None and table[1] >= 0 and dataset in ("chexpert", "chestxray14", "c19-cohen", "folder"):
            of_rows = [item for item in items if isinstance(item, Sample) or not item.reason.startswith(FILE_REASONS)]
            assert len(of_rows) == table[1]


@st.composite
def roots(draw: st.DrawFn) -> tuple[str, list[tuple[str, str, str]], tuple[bytes, int] | None, list[bytes]]:
    """Draw a dataset, what its root holds, its table and its lists."""
    dataset = draw(st.sampled_from(tuple(READERS)))
    has_table = dataset in TABLES and (dataset not in ("folder", "covidgr") or draw(st.booleans()))
    table = draw(tables(TABLES[dataset][1])) if has_table else None
    names = st.lists(st.sampled_from(("1.png", "2.PNG", "x", "\ufeff1.png")), max_size=3).map("\n".join)
    lists = draw(st.lists(names.map(str.encode), max_size=2)) if dataset == "chestxray14" else []
    return dataset, draw(trees()), table, lists


@settings(max_examples=150, print_blob=True)
@given(root=roots())
def test_every_file_and_row_is_accounted_for(root: Any) -> None:
    check(*root)


@pytest.mark.slow
@settings(max_examples=5_000, print_blob=True)
@given(root=roots())
def test_every_file_and_row_is_accounted_for_at_length(root: Any) -> None:
    check(*root)


@settings(max_examples=10, print_blob=True)
@given(dataset=st.sampled_from(tuple(LAYOUTS)), tree=trees())
def test_packing_any_tree_ends(dataset: str, tree: list[tuple[str, str, str]]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        build(folder / "root", dataset, tree)
        manifest = pack(PackConfig(dataset, folder / "root", folder / "out", workers=1))
        assert manifest.samples > 0
    except (UserError, RunFailed) as error:
        assert "\n" not in str(error)
    finally:
        shutil.rmtree(folder)
