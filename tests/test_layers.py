import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_imports_point_to_the_left() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_dependency_that_is_imported_is_declared() -> None:
    """Every third-party package that the five packages import stands in setup.cfg."""
    packages = ["infra", "sharding", "ssl_core", "evaluation", "launch"]
    imported = set()
    for package in packages:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    imported.add(node.module.partition(".")[0])
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    declared = {
        re.split(r"[\[><=;]", line)[0].strip().lower()
        for line in setup["options"]["install_requires"].strip().splitlines()
    }
    distribution = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml", "nvidia": "nvidia-dali-cuda130"}
    foreign = imported - set(sys.stdlib_module_names) - set(packages)
    assert {distribution.get(name, name) for name in foreign} <= declared
