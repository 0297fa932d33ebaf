"""Tables as spreadsheets, databases and scripts write them."""

from pathlib import Path

import pytest

from infra.errors import UserError
from sharding.datasets.table import OddCells, read_list, read_table

ROWS = [{"path": "a/1.png", "label": "sick, very"}, {"path": "a/2.png", "label": "well"}]


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "t.csv"
    path.write_bytes(text.encode(encoding))
    return path


def rows_of(path: Path, *columns: str) -> list[dict[str, str]]:
    return [cells for _, cells in read_table(path, columns or ("path", "label"))]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_table_is_read_in_every_common_form(delimiter: str, line_end: str, encoding: str, tmp_path: Path) -> None:
    lines = (("note", "path", "label"), ("x", "a/1.png", '"sick, very"'), (), ("", "", ""), ("", '"a/2.png"', " well "))
    text = line_end.join(delimiter.join(cells) for cells in lines)
    assert rows_of(write(tmp_path, text, encoding)) == ROWS


@pytest.mark.parametrize("blank", ["", " ", "nan", "NaN", "NA", "N/A", "<NA>", "null", "NULL", "#N/A", "\u00a0"])
def test_cell_without_a_value_is_blank_however_a_program_writes_it(blank: str, tmp_path: Path) -> None:
    assert rows_of(write(tmp_path, f"path,label\n1.png,{blank}\n")) == [{"path": "1.png", "label": ""}]


def test_table_with_two_columns_of_one_name_is_refused_when_the_column_is_needed(tmp_path: Path) -> None:
    path = write(tmp_path, "path,label,note,label,note\n1.png,sick,,well,\n")
    assert rows_of(path, "path") == [{"path": "1.png"}]
    with pytest.raises(UserError, match=r"t\.csv has more than one column 'label'; rename all but one of them$"):
        rows_of(path)
    with pytest.raises(UserError, match="more than one column 'label'"):
        list(read_table(path, ("path",), optional=("label",)))


def test_rows_that_do_not_fit_the_header_are_refused_together(tmp_path: Path) -> None:
    path = write(tmp_path, "path,note,label\n1.png,cough, fever,sick\n2.png,,well\n3.png\n")
    message = r"t\.csv line 2 has 4 cells, but the header has 3 \(and 1 more rows\); complete the rows, and quote cells"
    with pytest.raises(UserError, match=message):
        rows_of(path)


def test_longer_rows_are_read_when_only_unneeded_columns_can_have_shifted(tmp_path: Path) -> None:
    path = write(tmp_path, "path,label,note\n1.png,sick,cough, fever\n2.png,well,,,\n")
    assert rows_of(path) == [{"path": "1.png", "label": "sick"}, {"path": "2.png", "label": "well"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\nM\u00fcller.png,well\n".encode("latin-1"), r"is not UTF-8 \(byte 12\); convert it, for example"),
        (b"\xff\xfep\0a", r"is not UTF-16"),
        (b"\xff\xfepath", "lacks the column"),
        (b'path,label\n"1.png,well\n', r"line 1 or later is not CSV"),
        (b"image;class\n1.png;well\n", r"lacks the column\(s\) 'path', 'label'; it has 'image', 'class'; rename"),
        (b"", r"lacks the column\(s\) 'path', 'label'; it has none"),
        (b"\n\n", r"lacks the column\(s\) 'path', 'label'; it has none"),
        (b"path\0,label\n", r"lacks the column\(s\) 'path'; it has"),
        (b"path,label\n" + b"x" * 200_000, "field larger than field limit"),
    ],
)
def test_table_that_cannot_be_read_is_refused_in_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        rows_of(tmp_path / "t.csv")
    assert "\n" not in str(raised.value)


def test_list_is_read_with_a_byte_order_mark_and_any_line_ends(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf1.png\r\n2.png\n\n")
    assert read_list(tmp_path / "list.txt") == ["1.png", "2.png"]
    (tmp_path / "list.txt").write_bytes(b"\xfc.png\n")
    with pytest.raises(UserError, match=r"list\.txt is not a text file in UTF-8"):
        read_list(tmp_path / "list.txt")


def test_odd_cells_are_limited_to_ten_texts_in_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    odd = OddCells()
    odd.warn()
    odd.refuse("correct them")
    assert capsys.readouterr().err == ""
    for number in range(12):
        odd.add("age", f"x{number}", f"t.csv line {number + 2}")
    odd.warn()
    printed = capsys.readouterr().err
    assert printed.startswith("warning: cells that mean nothing count as unknown (12): age='x0' (t.csv line 2), ")
    assert printed.endswith("age='x9' (t.csv line 11), and 2 other texts\n")
