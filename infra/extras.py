"""Optional packages: the extra that installs each one, and the error if it is missing."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final, Literal

from infra.errors import MissingHere

Extra = Literal[
    "dali",
    "deepspeed",
    "ray",
    "s3",
    "gcs",
    "dicom",
    "parquet",
    "timm",
    "onnx",
    "transformers",
    "prometheus",
    "wandb",
    "mlflow",
]


@dataclass(frozen=True)
class _Package:
    product: str
    modules: tuple[str, ...]


_PACKAGES: Final[dict[Extra, _Package]] = {
    "dali": _Package("NVIDIA DALI", ("nvidia", "nvidia.dali")),
    "deepspeed": _Package("DeepSpeed", ("deepspeed",)),
    "ray": _Package("Ray", ("ray",)),
    "s3": _Package("s3fs", ("s3fs",)),
    "gcs": _Package("gcsfs", ("gcsfs",)),
    "dicom": _Package("pydicom with imagecodecs", ("pydicom", "imagecodecs")),
    "parquet": _Package("pyarrow", ("pyarrow",)),
    "timm": _Package("timm", ("timm",)),
    "onnx": _Package("ONNX with onnxscript and onnxruntime", ("onnx", "onnxscript", "onnxruntime")),
    "transformers": _Package("transformers", ("transformers",)),
    "prometheus": _Package("prometheus-client", ("prometheus_client",)),
    "wandb": _Package("Weights & Biases", ("wandb",)),
    "mlflow": _Package("MLflow with SQLAlchemy", ("mlflow", "sqlalchemy", "alembic")),
}


def has_extra(name: Extra) -> bool:
    """Return whether the packages of this extra are installed, without importing them."""
    return all(find_spec(module) is not None for module in _PACKAGES[name].modules)


def require_extra(name: Extra, reason: str, instead: str = "") -> None:
    """Check that an optional package is installed; call this before importing it.

    Args:
        name: the extra, as in `pip install "sternum[ray]"`
        reason: what needs the package, as the user typed it, such as `engine.kind=deepspeed`
        instead: an alternative without the package, such as `take engine.kind=ddp`

    Raises:
        MissingHere: if the package is missing; the message names the command that installs it and the alternative
    """
    if not has_extra(name):
        raise MissingHere(
            f"{reason} needs {_PACKAGES[name].product}, which is not installed; "
            f'pip install "sternum[{name}]"' + (f", or {instead}" if instead else "")
        )
