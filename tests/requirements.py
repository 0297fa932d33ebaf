"""Print the product's requirements in setup.cfg, extras included, as a requirements file: deptry reads no setup.cfg."""

import configparser
import sys
from pathlib import Path


def requirements(setup_cfg: Path) -> list[str]:
    """Return the requirements of the base install and of the extras, except for `dev` and for `all`, which repeats."""
    setup = configparser.ConfigParser()
    setup.read(setup_cfg)
    extras = dict(setup["options.extras_require"])
    del extras["dev"], extras["all"]
    groups = [setup["options"]["install_requires"], *extras.values()]
    return [line for group in groups for line in group.splitlines() if line]


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(Path("setup.cfg"))) + "\n")
