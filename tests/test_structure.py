import subprocess
import sys
from pathlib import Path

import pytest

from tests.structure import folder_cycles, module_imports, structure_of

ROOT = Path(__file__).parents[1]


def test_imports_follow_the_layers() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    return module_imports(ROOT)


@pytest.mark.parametrize(
    ("package", "most_arrows"), [("infra", 40), ("sharding", 15), ("ssl_core", 10), ("evaluation", 30)]
)
def test_few_rooms_of_a_package_import_each_other(package: str, most_arrows: int, imports: dict[str, set[str]]) -> None:
    assert structure_of(package, imports).arrows <= most_arrows


def test_no_folders_import_each_other_in_a_cycle(imports: dict[str, set[str]]) -> None:
    assert folder_cycles(imports) == []


def test_figures_of_a_package_whose_structure_is_known(tmp_path: Path) -> None:
    modules = {
        "house/__init__.py": "from house import roof",
        "house/roof.py": "import house.floor.wall\nfrom house import cellar",
        "house/floor/__init__.py": "",
        "house/floor/wall.py": "def build():\n    from house.cellar import stone\n    import sys",
        "house/cellar.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house import roof\nstone = 1",
    }
    for name, text in modules.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    imports = module_imports(tmp_path, ["house"])
    figures = structure_of("house", imports)
    assert (figures.rooms, figures.floors, figures.arrows) == (3, 3, 3)
    # `house.floor.wall` imports a module in the folder `house`, and `house.roof` one in `house.floor`.
    assert folder_cycles(imports) == [["house", "house.floor"]]
