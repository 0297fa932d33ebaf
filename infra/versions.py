"""The versions of the programs that packed bytes, features and scores depend on."""

import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Final

from PIL import features

_PACKAGES: Final = (
    "sternum",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
    "imagecodecs",
    "pydicom",
    "torch",
    "torchvision",
)
_TRAINING: Final = ("deepspeed", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "ray", "triton")
NOT_INSTALLED: Final = "not installed"


@cache
def versions() -> dict[str, str]:
    """Return the versions of this process by name, without the builds of a version, such as those for CPU and GPU."""
    found = {name: _version(name).partition("+")[0] for name in _PACKAGES}
    return {"Python": platform.python_version(), **found, "libjpeg-turbo": features.version("libjpeg_turbo") or ""}


def versions_for_training() -> dict[str, str]:
    """Return the versions that must be equal on all machines of a run, builds included."""
    builds = {name: _version(name) for name in ("torch", "torchvision")}
    return versions() | builds | {name: _version(name) for name in _TRAINING}


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Return `NAME THEIRS instead of OURS` for each version that differs."""
    return [
        f"{name} {theirs.get(name, NOT_INSTALLED)} instead of {version}"
        for name, version in ours.items()
        if theirs.get(name, NOT_INSTALLED) != version
    ]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED
