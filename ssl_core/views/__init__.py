"""Views of encoded images: one specification (`spec`), and two executors (`dali`, `torchvision`) that make them.

An executor turns encoded images and drawn parameters into normalized tensors. The two executors agree within
PIXEL_TOLERANCE, in gray levels from 0 to 255.
"""

from typing import Final

from infra.errors import UserError
from infra.extras import has_extra, require_extra
from ssl_core.views.task import ViewBatch, ViewExecutor, ViewInputs, ViewTask

__all__ = ["EXECUTORS", "PIXEL_TOLERANCE", "ViewBatch", "ViewExecutor", "ViewInputs", "ViewTask", "build_view_executor"]

EXECUTORS: Final = ("auto", "dali", "torchvision")
PIXEL_TOLERANCE: Final = {"mean": 0.1, "max": 1.0}


def build_view_executor(name: str, task: ViewTask) -> ViewExecutor:
    """Return the executor of this name; `auto` is DALI if it is installed, else torchvision.

    Raises:
        UserError: if the name is unknown, or DALI is not installed
    """
    if name not in EXECUTORS:
        raise UserError(f"executor={name} must be one of {', '.join(EXECUTORS)}; try auto")
    if name == "dali":
        require_extra("dali", "executor=dali", "use executor=torchvision")
    if name == "torchvision" or not has_extra("dali"):
        from ssl_core.views.torchvision import TorchvisionExecutor  # noqa: PLC0415  each import takes a second

        return TorchvisionExecutor(task)
    from ssl_core.views.dali import DaliExecutor  # noqa: PLC0415

    return DaliExecutor(task)
