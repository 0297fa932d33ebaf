"""docs/paper.md names files of the code and what they define; these references must not go stale."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "paper.md"
REFERENCE = re.compile(r"`([\w/]+/[\w/.]+\.(?:py|yaml))`(?: \(((?:`\w+`(?:, )?)+)\))?")


def names_in(path: Path) -> set[str]:
    """The functions, classes and constants that a module defines."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_every_row_refers_to_code_or_says_that_it_is_missing() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    silent = [row for row in rows if not REFERENCE.search(row) and not row.endswith(" not there yet |")]
    assert [row.split(" |")[0] for row in silent] == ["| the paper"] * 3


def test_files_and_names_of_the_page_exist() -> None:
    references = REFERENCE.findall(PAGE.read_text(encoding="utf-8"))
    assert len(references) > 40
    for path, names in references:
        assert (ROOT / path).is_file(), path
        missing = set(re.findall(r"\w+", names)) - (names_in(ROOT / path) if names else set())
        assert not missing, f"{path} does not define {missing}"


def test_settings_of_the_papers_pretraining_are_stated_or_marked() -> None:
    lines = (ROOT / "launch" / "configs" / "gazda2021.yaml").read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if re.match(r"  \w+: ", line)]
    assert len(values) > 20
    for line in values:
        assert re.search(r"# (not stated|section|Table|Figure|no effect on learning)", line), line
