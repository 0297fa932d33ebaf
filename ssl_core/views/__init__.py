"""Views of encoded images: one specification (`spec`), two executors (`dali`, `torchvision`) that carry it out.

An executor takes encoded images and drawn parameters and gives normalised tensors. The two agree within
PIXEL_TOLERANCE, in gray levels from 0 to 255.
"""

from typing import Final

from infra.errors import UserError
from infra.extras import has_extra, require_extra
from ssl_core.views.task import ViewBatch, ViewExecutor, ViewInputs, ViewTask

__all__ = ["KINDS", "PIXEL_TOLERANCE", "ViewBatch", "ViewExecutor", "ViewInputs", "ViewTask", "executor"]

KINDS: Final = ("auto", "dali", "torchvision")
PIXEL_TOLERANCE: Final = {"mean": 0.1, "max": 1.0}


def executor(kind: str, task: ViewTask) -> ViewExecutor:
    """Return the executor of this kind; `auto` is DALI where it is installed, else torchvision.

    Raises UserError when the kind is unknown or not installed.
    """
    if kind not in KINDS:
        raise UserError(f"executor={kind!r} must be one of {', '.join(KINDS)}; try auto")
    if kind == "dali":
        require_extra("dali", "executor=dali", instead="set executor=torchvision")
    if kind == "torchvision" or not has_extra("dali"):
        from ssl_core.views.torchvision import TorchvisionExecutor  # noqa: PLC0415  each import takes a second

        return TorchvisionExecutor(task)
    from ssl_core.views.dali import DaliExecutor  # noqa: PLC0415

    return DaliExecutor(task)
