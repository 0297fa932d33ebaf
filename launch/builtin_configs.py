"""The configuration files that come with Sternum, found by name from any folder."""

from importlib.resources import files
from pathlib import Path
from typing import Final

_FOLDER: Final = Path(str(files("launch"))) / "configs"

PRETRAIN_CONFIGS: Final = {name: _FOLDER / f"{name}.yaml" for name in ("cpu", "demo", "gazda2021")}
PROBE_CONFIGS: Final = {name: _FOLDER / f"{name}.yaml" for name in ("probe-gazda2021",)}
