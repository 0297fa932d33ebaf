"""The GPUs of one machine, and whether torch can use them."""

from collections.abc import Iterator
from importlib.util import find_spec

from infra.doctor.finding import Finding, finding_of
from infra.doctor.resources import megabytes
from infra.errors import UserError
from infra.ranks.processes import Ranks


def check_gpus(ranks: Ranks) -> Iterator[Finding]:
    """Say what GPUs the processes of this machine have; a GPU that torch cannot use is wrong, no GPU is not."""
    if find_spec("torch") is None:
        yield Finding("GPUs", "not looked at without torch, which packing does not need")
        return
    import torch  # noqa: PLC0415 (machines that only pack lack it)

    from infra.ranks.devices import device_of, driver_version  # noqa: PLC0415

    try:
        device = device_of(ranks)
    except UserError as error:
        yield finding_of("GPUs", error)
        return
    if device.type == "cpu":
        yield Finding("GPUs", "none, so runs train on the CPU")
        return
    properties = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    names = sorted({f"{gpu.name} of {megabytes(gpu.total_memory)}" for gpu in properties})
    version = driver_version() or "unknown"
    yield Finding("GPUs", f"{len(properties)} ({', '.join(names)}), driver {version}, CUDA {torch.version.cuda}")
