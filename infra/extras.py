"""Optional packages: the extra that installs each one, and the error if it is missing."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final, Literal

from infra.errors import UserError

Extra = Literal["dali", "deepspeed", "ray", "s3", "gcs", "dicom"]


@dataclass(frozen=True)
class _Package:
    module: str
    product: str


_PACKAGES: Final[dict[Extra, _Package]] = {
    "dali": _Package("nvidia.dali", "NVIDIA DALI"),
    "deepspeed": _Package("deepspeed", "DeepSpeed"),
    "ray": _Package("ray", "Ray Tune"),
    "s3": _Package("s3fs", "s3fs"),
    "gcs": _Package("gcsfs", "gcsfs"),
    "dicom": _Package("pydicom", "pydicom"),
}


def has_extra(name: Extra) -> bool:
    """Return whether the package of this extra is installed, without importing it."""
    parent, _, _ = _PACKAGES[name].module.partition(".")
    return find_spec(parent) is not None and find_spec(_PACKAGES[name].module) is not None


def require_extra(name: Extra, reason: str, instead: str = "") -> None:
    """Check that an optional package is installed; call this before importing it.

    Args:
        name: the extra, as in `pip install "sternum[ray]"`
        reason: what needs the package, as the user typed it, such as `engine.kind=deepspeed`
        instead: an alternative without the package, such as `take engine.kind=ddp`

    Raises:
        UserError: if the package is missing; the message names the command that installs it and the alternative
    """
    if not has_extra(name):
        raise UserError(
            f"{reason} needs {_PACKAGES[name].product}, which is not installed; "
            f'pip install "sternum[{name}]"' + (f", or {instead}" if instead else "")
        )
