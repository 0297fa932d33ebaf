"""What the encoder does on a GPU, on tensors without data: which collectives, and that nothing waits for the GPU.

A fake tensor has a device and a type but no values, so whatever needs one (`nonzero`, `item`, a boolean mask) raises.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_core.engines.engine import AutocastEncoder
from ssl_core.engines.train_config import Precision
from ssl_core.model.batch_norm import rows_counted, synchronize_batch_norm
from ssl_core.model.encoder import Encoder
from tests.support.fork_server import fork_context
from tests.support.process_group import on_ranks
from tests.support.small_encoder import SIZE_PX, small_encoder

WORLD = 8
Sent = list[tuple[str, str, int]]  # of each collective: its name, the type and the number of values


class Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sent: Sent = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            [tensor] = args[0]
            self.sent.append((function.name(), str(tensor.dtype), tensor.numel()))
        return function(*args, **(kwargs or {}))


def shapes_of_cuda_kernels() -> Any:
    """Say what shapes torch's CUDA kernels return, for which it has no fake ones."""
    library: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]

    def channels(x: Tensor, count: int) -> list[Tensor]:
        return [x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(count)]

    library.impl("batch_norm_update_stats", lambda x, *_: tuple(channels(x, 2)), "Meta")
    library.impl("batch_norm_backward_reduce", lambda dy, x, *_: tuple(channels(x, 4)), "Meta")
    library.impl("batch_norm_backward_elemt", lambda dy, x, *_: torch.empty_like(x), "Meta")
    return library


def is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm)


def fake_ranks() -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: PLC0415

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=WORLD)
    torch.cuda.is_current_stream_capturing = lambda: False


def cuda_encoder() -> Encoder:
    with torch.device("cuda"):
        encoder = small_encoder()
        for module in encoder.modules():  # anew, because a fake tensor cannot come from a real one's device
            for name, values in [*module._parameters.items(), *module._buffers.items()]:
                if values is not None:
                    empty = torch.empty_like(values, device="cuda")
                    setattr(module, name, nn.Parameter(empty) if isinstance(values, nn.Parameter) else empty)
    synchronize_batch_norm(encoder)
    return encoder.train()


def sent_in_a_step(images: int, precision: Precision, masked: bool = False) -> Sent:
    """Pass so many images forward on a fake GPU, and gradients backward through each batch norm; return what is sent.

    Where some are `masked`, nothing depends on which.

    Autograd itself asks for a real GPU, so the layers' backward passes are called one by one.
    """
    fake_ranks()
    library = shapes_of_cuda_kernels()
    backward: list[tuple[Any, Tensor]] = []  # of each layer, with a gradient of its output
    with FakeTensorMode(allow_non_fake_inputs=True), Collectives() as collectives:
        encoder = cuda_encoder()
        for layer in filter(is_norm, encoder.modules()):
            layer.register_forward_hook(lambda layer, x, y: backward.append((y.grad_fn, torch.empty_like(y))))
        counted = torch.ones(images, dtype=torch.bool, device="cuda") if masked else None
        views = torch.empty(images, 1, SIZE_PX, SIZE_PX, device="cuda")
        projections = AutocastEncoder(encoder, precision)(views, counted=counted)
        assert projections.shape == (images, 16)
        for grad_fn, dy in reversed(backward):
            dx, dweight, dbias, *_ = grad_fn.apply(dy, None, None, None)
            assert (dx.shape, dx.dtype) == (dy.shape, dy.dtype)
            assert dweight.shape == dbias.shape == (dy.shape[1],)
    library._destroy()
    return collectives.sent


def graphs_and_breaks(images: int) -> tuple[int, int]:
    import torch._dynamo  # noqa: PLC0415

    fake_ranks()
    with FakeTensorMode(allow_non_fake_inputs=True):
        backbone = cuda_encoder().backbone
        views = torch.empty(images, 1, SIZE_PX, SIZE_PX, device="cuda")
        with rows_counted(backbone, torch.ones(images, dtype=torch.bool, device="cuda")):  # as an engine compiles it
            found = torch._dynamo.explain(backbone)(views)
    return found.graph_count, found.graph_break_count


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own, whose group and kernels are gone afterwards."""
    with ProcessPoolExecutor(1, mp_context=fork_context()) as process:
        return process.submit(function, *arguments).result()


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_the_encoder_on_a_gpu_waits_for_nothing_and_sends_the_same_without_images(precision: Precision) -> None:
    layers = [layer for layer in small_encoder().modules() if is_norm(layer)]
    sent = alone(sent_in_a_step, 4, precision)
    assert len(sent) == 2 * len(layers)  # one forward and one backward, of each layer
    assert {(name, dtype) for name, dtype, _ in sent} == {("c10d::allreduce_", "torch.float64")}
    assert alone(sent_in_a_step, 0, precision) == sent
    assert alone(sent_in_a_step, 4, precision, True) == sent


@pytest.mark.slow
def test_the_backbone_compiles_into_one_graph_on_several_gpus() -> None:
    assert alone(graphs_and_breaks, 4) == (1, 0)


def compiled_and_not(rank: int, world: int) -> list[dict[str, Tensor]]:
    found = []
    for compiled in (False, True):
        first = nn.Conv2d(1, 4, 3, bias=False)
        model = nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU()).double()
        with torch.no_grad():
            first.weight.copy_(torch.linspace(-1, 1, 36).view(4, 1, 3, 3))
        synchronize_batch_norm(model)
        if compiled:
            model.compile(backend="aot_eager")
        images = torch.randn(2 + rank, 1, 8, 8, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
        y = model(images)
        (y**3).sum().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        found.append({"y": y.detach(), **gradients, **dict(model.named_buffers())})
    return found


def test_the_compiled_layer_computes_the_same_on_all_ranks() -> None:
    for plain, compiled in on_ranks(2, compiled_and_not):
        assert plain.keys() == compiled.keys()
        for name, value in plain.items():
            torch.testing.assert_close(compiled[name], value, rtol=1e-9, atol=1e-9)
