import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from infra.errors import UserError
from ssl_core.engines import Engine, EngineConfig, EngineSetup, build_engine
from ssl_core.engines.deepspeed_json import deepspeed_settings
from ssl_core.engines.train_config import Precision
from ssl_core.loss.agreement import agree
from ssl_core.loss.ntxent import LossConfig
from ssl_core.model.encoder import Encoder
from ssl_core.model.optimizer import OptimConfig
from tests.support.process_group import on_ranks
from tests.support.small_encoder import small_encoder, small_encoder_in_double, two_views

ENGINES = {
    "ddp": EngineConfig(),
    **{f"zero-{stage}": EngineConfig("deepspeed", zero_stage=stage) for stage in (0, 1, 2)},
}
SAMPLES = 8
State = dict[str, Tensor]


def build(
    config: EngineConfig, encoder: Encoder, optim: OptimConfig | None = None, precision: Precision = "fp32"
) -> Engine:
    optim = optim or OptimConfig(name="adamw", weight_decay=0.1)  # in two groups of parameters
    setup = EngineSetup(config, optim, LossConfig(), precision, torch.device("cpu"), micro_batches=2)
    return build_engine(setup, encoder)


def share(step: int, rank: int, world: int) -> list[Tensor]:
    return [view.chunk(world)[rank] for view in two_views(SAMPLES, seed=step)]


def copied(state: Mapping[str, Tensor]) -> State:
    return {name: value.clone() for name, value in state.items()}


def furthest(result: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the largest difference of two states, each tensor's relative to its largest number."""
    assert result.keys() == expected.keys()
    return max(((result[k] - v).abs().max() / v.abs().max().clamp(min=1e-6)).item() for k, v in expected.items())


# ---- in two processes, all at once since their start takes longest

Run = tuple[State, State]  # of the model and of the optimizer


def in_each_process(rank: int, world: int, alone: Run, end: Run, move_by: Sequence[int] = (0, 1)) -> dict[str, Any]:
    """The results that the tests below check. `alone`, `end`: a run in one process after two and three steps."""
    whole = {name: train(name, range(3), rank, world) for name in ENGINES}
    runs = {name: train(name, range(2), rank, world) for name in ENGINES}
    kinds = list(ENGINES)
    # Every engine writes what one other engine reads, and what it reads itself; all pairs are in the slow suite.
    moves = [(kinds[k], kinds[(k + by) % 4]) for k, by in product(range(4), move_by)]
    moved = {move: train(move[1], range(2, 3), rank, world, runs[move[0]]) for move in moves}
    return {
        "runs": runs,
        "steps": {name: differences(run, end) for name, run in whole.items()},
        "moves": {" -> ".join(move): differences(run, end) for move, run in moved.items()},
        "moves from one process": {
            name: differences(train(name, range(2, 3), rank, world, alone), end) for name in ENGINES
        },
        "continued": {name: differences(moved[name, name], whole[name]) for name in ENGINES},
        "skips": {name: skips(name, rank, world, runs[name]) for name in ENGINES},
        "fp16": {name: in_fp16(name, rank, world) for name in ENGINES},
        "clipped": {name: clipped(name, rank, world) for name in ENGINES},
        "in bf16": averaged_in_bf16(rank, world),
        "refusal": refusal(),
    }


def differences(result: Run, expected: Run) -> float:
    return max(furthest(*states) for states in zip(result, expected, strict=True))


def train(name: str, steps: range, rank: int, world: int, before: Run | None = None) -> Run:
    engine = build(ENGINES[name], small_encoder_in_double())
    assert engine.optimizer_state() == {}
    if before:
        engine.load(*before)
    for step in steps:
        engine.backward(share(step, rank, world))
        assert engine.update(1e-3 / (1 + step))
        assert engine.gradients() == {}
    # As checkpoints are written; it refuses tensors that share memory.
    safetensors.torch.save({name: value.contiguous() for name, value in engine.model_state().items()})
    return copied(engine.model_state()), copied(engine.optimizer_state())


def refusal() -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ds.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": 1, "reduce_bucket_size": "many"}}))
        try:
            build(EngineConfig("deepspeed", deepspeed_config=path), small_encoder())
        except UserError as error:
            return str(error)
    return "none"


def skips(name: str, rank: int, world: int, undisturbed: Run) -> dict[str, Any]:
    engine = build(ENGINES[name], small_encoder_in_double())
    engine.backward(share(0, rank, world))
    engine.update(1e-3)
    before = copied(engine.model_state()), copied(engine.optimizer_state())
    # On the first rank alone: a NaN in the images, then one that arises in the backward pass.
    images = share(1, rank, world)
    if rank == 0:
        images[0][0, 0, 0, 0] = math.nan
    loss = engine.backward(images).loss
    update = engine.update(1e-3)
    refused = [math.isnan(loss), bool(update), update.why_not()]
    weight = dict(engine.encoder.named_parameters())["head.hidden.weight"]
    factor = math.nan if rank == 0 else 1
    hook = weight.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]
    engine.backward(share(1, rank, world))
    updated = bool(engine.update(1e-3))
    hook.remove()
    changed = differences((engine.model_state(), engine.optimizer_state()), before)
    # A gradient that is never used, and then the step that the disturbances were in front of.
    engine.backward(share(5, rank, world))
    engine.load(*before)
    engine.backward(share(1, rank, world))
    engine.update(0.5e-3)
    return {
        "refused": refused,
        "updated": updated,
        "changed": changed,
        "next": differences((engine.model_state(), engine.optimizer_state()), undisturbed),
    }


def in_fp16(name: str, rank: int, world: int) -> dict[str, Any]:
    engine = build(ENGINES[name], small_encoder(), precision="fp16")
    images = [view[..., ::2, ::2] for view in share(0, rank, world)]  # a CPU takes seconds for a backward pass in fp16
    initial = {"loss_scale/value": torch.tensor(2.0**100), "loss_scale/steps_since": torch.tensor(0.0)}
    engine.load(copied(engine.model_state()), initial)  # far more than the gradients allow
    engine.backward(images)
    too_large = bool(engine.update(1e-3))
    halved = engine.optimizer_state()["loss_scale/value"].item()
    engine.load(copied(engine.model_state()), {**initial, "loss_scale/value": torch.tensor(2.0**10)})
    engine.backward(images)
    gradients = engine.gradients()
    engine.update(1e-3)
    state = engine.optimizer_state()
    return {
        "too_large": too_large,
        "halved": halved,
        "gradients": gradients,
        "moments": {key: value for key, value in state.items() if key.endswith("exp_avg")},
        "steps_since": state["loss_scale/steps_since"].item(),
    }


def clipped(name: str, rank: int, world: int) -> float:
    """The length of the clipped gradient, as Adam's first moment remembers it."""
    config = ENGINES[name]
    engine = build(EngineConfig(config.kind, config.zero_stage, max_gradient_norm=1e-3), small_encoder_in_double())
    engine.backward(share(0, rank, world))
    engine.update(1e-3)
    moments = [value.norm() for key, value in engine.optimizer_state().items() if key.endswith("exp_avg")]
    return torch.stack(moments).norm().item() / 0.1


def averaged_in_bf16(rank: int, world: int) -> float:
    """How far the gradient is from the one that travels in fp32, relative to that."""
    gradients = []
    for config in (EngineConfig(), EngineConfig(average_in="bf16")):
        engine = build(config, small_encoder_in_double())
        engine.backward(share(0, rank, world))
        gradients.append(torch.cat([gradient.flatten() for gradient in engine.gradients().values()]))
    return ((gradients[1] - gradients[0]).norm() / gradients[0].norm()).item()


@pytest.fixture(scope="module")
def one_process() -> tuple[Run, Run]:
    """A run of DDP in this process, after two and after three steps."""
    return train("ddp", range(2), 0, 1), train("ddp", range(3), 0, 1)


@pytest.fixture(scope="module")
def two_processes(one_process: tuple[Run, Run]) -> dict[str, Any]:
    return on_ranks(2, in_each_process, *one_process)[0]


# Adam divides a gradient by its size, so the rounding of the smallest ones weighs most; measured 1e-5.
TOLERANCE = 1e-4


def test_engines_make_the_same_steps_in_one_and_in_two_processes(
    one_process: tuple[Run, Run], two_processes: dict[str, Any]
) -> None:
    _, (_, optimizer) = one_process
    names = [name for name, _ in small_encoder().named_parameters()]
    assert optimizer.keys() == {f"{name}/{kind}" for name, kind in product(names, ("step", "exp_avg", "exp_avg_sq"))}
    assert two_processes["steps"].keys() == ENGINES.keys()
    assert max(two_processes["steps"].values()) < TOLERANCE


def test_a_run_moves_between_engines_and_stages(two_processes: dict[str, Any]) -> None:
    assert len(two_processes["moves"]) == 8
    assert max(two_processes["moves"].values()) < TOLERANCE, two_processes["moves"]


@pytest.mark.slow
def test_a_run_moves_between_all_engines_and_stages(one_process: tuple[Run, Run]) -> None:
    moves = on_ranks(2, in_each_process, *one_process, (0, 1, 2, 3))[0]["moves"]
    assert len(moves) == 16
    assert max(moves.values()) < TOLERANCE, moves


def test_a_run_moves_between_world_sizes(one_process: tuple[Run, Run], two_processes: dict[str, Any]) -> None:
    assert max(two_processes["moves from one process"].values()) < TOLERANCE
    for name, run in two_processes["runs"].items():
        assert differences(train("ddp", range(2, 3), 0, 1, run), one_process[1]) < TOLERANCE, name


def test_a_run_resumed_by_the_same_engine_continues_to_the_bit(two_processes: dict[str, Any]) -> None:
    assert two_processes["continued"] == dict.fromkeys(ENGINES, 0.0)


def test_what_deepspeed_refuses_itself_is_one_line(two_processes: dict[str, Any]) -> None:
    assert "DeepSpeed rejects its configuration" in two_processes["refusal"]
    assert "reduce_bucket_size" in two_processes["refusal"]
    assert "\n" not in two_processes["refusal"]


@pytest.mark.parametrize("name", ENGINES)
def test_a_step_that_is_not_finite_on_one_rank_changes_nothing(two_processes: dict[str, Any], name: str) -> None:
    result = two_processes["skips"][name]
    refused = [True, False, "projections are not finite: rank 0: 4 rows; rank 1: 4 rows"]  # through batch norm
    assert result == {"refused": refused, "updated": False, "changed": 0.0, "next": 0.0}


@pytest.mark.parametrize("name", ENGINES)
def test_fp16_scales_the_loss_as_far_as_gradients_allow(two_processes: dict[str, Any], name: str) -> None:
    result, ddp = two_processes["fp16"][name], two_processes["fp16"]["ddp"]
    assert not result["too_large"]
    assert result["halved"] == 2.0**99
    assert result["steps_since"] == 1
    assert furthest(result["gradients"], ddp["gradients"]) < 1e-5
    assert furthest(result["moments"], ddp["moments"]) < 1e-5
    for key, moment in result["moments"].items():
        assert torch.allclose(moment, 0.1 * result["gradients"][key.removesuffix("/exp_avg")], rtol=1e-4, atol=1e-9)


def test_gradients_that_travel_in_bf16_keep_eight_bits(two_processes: dict[str, Any]) -> None:
    assert 2**-12 < two_processes["in bf16"] < 2**-8


@pytest.mark.parametrize("name", ENGINES)
def test_clips_the_gradient_to_the_chosen_length(two_processes: dict[str, Any], name: str) -> None:
    assert two_processes["clipped"][name] == pytest.approx(1e-3, rel=1e-2)


def too_few(rank: int, world: int) -> list[str]:
    messages = []
    for config in ENGINES.values():
        try:
            build(config, small_encoder()).backward([view[: 1 - rank] for view in two_views(1)])
        except UserError as error:
            messages.append(str(error))
    return messages


@pytest.mark.slow
def test_too_few_samples_are_refused_on_every_rank() -> None:
    for messages in on_ranks(2, too_few):
        assert len(messages) == len(ENGINES)
        assert all("has 1 readable samples" in message for message in messages)


def continued(rank: int, world: int) -> dict[str, float]:
    runs = {name: train(name, range(2), rank, world) for name in ENGINES}
    return {
        name: differences(train(name, range(2, 3), rank, world, run), train(name, range(3), rank, world))
        for name, run in runs.items()
    }


@pytest.mark.slow
def test_four_ranks_that_resume_add_up_in_the_same_order() -> None:
    """The sum of two numbers does not depend on their order; that of more does."""
    assert on_ranks(4, continued)[0] == dict.fromkeys(ENGINES, 0.0)


# ---- in this process


@pytest.mark.slow
def test_a_compiled_backbone_keeps_the_names_of_its_state() -> None:
    engine = build(EngineConfig(compile=True), small_encoder())
    assert engine.model_state().keys() == small_encoder().state_dict().keys()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_backbone_computes_the_same() -> None:
    plain, compiled = (build(EngineConfig(compile=compile), small_encoder()) for compile in (False, True))
    everyone = torch.ones(SAMPLES, dtype=torch.bool)  # as a training gives it at each step
    losses = [engine.backward(two_views(SAMPLES), counted=everyone).loss.item() for engine in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    half = torch.arange(SAMPLES) % 2 == 0
    masked = [
        engine.backward(two_views(SAMPLES), agree(SAMPLES // 2, LossConfig()), half) for engine in (plain, compiled)
    ]
    assert masked[1].loss.item() == pytest.approx(masked[0].loss.item(), rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs  # compiled once, whatever is masked
    assert compiled.update(1e-3)
    gradients = [engine.backward(two_views(SAMPLES), counted=everyone).loss for engine in (plain, compiled)]
    assert all(gradient.isfinite() for gradient in gradients)


def test_lars_is_refused_where_zero_would_cut_its_layers() -> None:
    with pytest.raises(UserError, match=r"engine.zero_stage=1 splits layers.*optim.name=lars.*zero_stage=0"):
        build(ENGINES["zero-1"], small_encoder(), OptimConfig("lars", 0.3))


@pytest.mark.slow
def test_deepspeed_says_nothing_on_the_terminal() -> None:
    script = (
        "import torch; from tests.support.small_encoder import small_encoder, two_views\n"
        "from tests.ssl_core.engines.test_engines import ENGINES, build\n"
        "engine = build(ENGINES['zero-2'], small_encoder())\n"
        "engine.backward(two_views(4)); engine.update(1e-3)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- configuration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zero_stage": 2}, "engine.zero_stage=2 needs engine.kind=deepspeed, not ddp"),
        ({"deepspeed_config": Path("a.json")}, "engine.deepspeed_config=a.json needs engine.kind=deepspeed"),
        ({"kind": "deepspeed", "average_in": "bf16"}, "engine.average_in=bf16 needs engine.kind=ddp, not deepspeed"),
        ({"cuda_graphs": True}, "engine.cuda_graphs=true needs engine.compile=true"),
        ({"cuda_graphs": True, "compile": True, "kind": "deepspeed"}, "engine.cuda_graphs=true needs engine.kind=ddp"),
        ({"max_gradient_norm": 0.0}, "engine.max_gradient_norm=0.0 must be positive"),
        ({"max_gradient_norm": math.nan}, "engine.max_gradient_norm=nan must be positive"),
    ],
)
def test_refuses_a_configuration_that_contradicts_itself(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EngineConfig(**options)


@pytest.mark.parametrize(
    ("given", "ours", "message"),
    [
        (
            {"train_batch_size": 64},
            {},
            "train_batch_size=64 in .*ds.json contradicts data.global_batch=128; remove one",
        ),
        (
            {"train_micro_batch_size_per_gpu": 8},
            {},
            "batch_size_per_gpu=8 in .*because train.micro_batches sets it; remove",
        ),
        ({"gradient_accumulation_steps": 4}, {}, "accumulation_steps=4 in .*negatives; use train.micro_batches"),
        ({"optimizer": {"type": "Adam"}}, {}, 'optimizer={"type": "Adam"} in .*because optim.name sets it; remove it'),
        ({"scheduler": {}}, {}, "scheduler={} in .*optim.schedule"),
        ({"fp16": {"enabled": True}}, {}, "fp16.enabled=true in .*contradicts train.precision=bf16"),
        ({"bf16": {"enabled": False}}, {}, "bf16.enabled=false in .*contradicts train.precision=bf16"),
        ({"bf16": {"enabled": True, "immediate_grad_update": True}}, {}, "bf16.immediate_grad_update=true .*remove"),
        ({"gradient_clipping": 1.0}, {"max_gradient_norm": 2.0}, "gradient_clipping=1.0 .*max_gradient_norm=2.0"),
        ({"gradient_clipping": 0.0}, {"max_gradient_norm": 1.0}, "gradient_clipping=0.0 .*contradicts.*norm=1.0"),
        ({"gradient_clipping": "x"}, {}, 'gradient_clipping="x" .*must be a number, 0 for no clipping; use 1.0'),
        ({"gradient_clipping": True}, {}, "gradient_clipping=true .*must be a number"),
        ({"zero_optimization": {"stage": 3}}, {}, "zero_optimization.stage=3 in .*must be 0, 1 or 2.*use 0"),
        ({"zero_optimization": {"stage": 2}}, {"zero_stage": 1}, "stage=2 in .*contradicts engine.zero_stage=1"),
        ({"zero_optimization": {"offload_optimizer": {}}}, {}, "zero_optimization.offload_optimizer={} in .*remove it"),
        ({"zero_optimization": 2}, {}, "zero_optimization=2 in .*must be an object"),
        ({"data_efficiency": {}}, {}, "data_efficiency={} in .*is not supported; remove it"),
        ({"wandb": {"enabled": True}}, {}, "^wandb=.* in .*would write or send files elsewhere; .*; remove it"),
        ({"tensorboard": {"output_path": "/x"}}, {}, "^tensorboard=.*would write or send files elsewhere"),
        ({"csv_monitor": {"enabled": True}}, {}, "^csv_monitor=.*would write or send files elsewhere"),
        ({"flops_profiler": {"output_file": "/x"}}, {}, "^flops_profiler=.*would write or send files elsewhere"),
        ([], {}, "ds.json is not a JSON object"),
    ],
)
def test_refuses_a_deepspeed_json_that_contradicts_our_settings(
    tmp_path: Path, given: Any, ours: dict[str, Any], message: str
) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(given))
    with pytest.raises(UserError, match=message) as refused:
        deepspeed_settings(EngineConfig("deepspeed", deepspeed_config=path, **ours), "bf16", 128)
    assert "\n" not in str(refused.value)


def test_a_deepspeed_json_may_name_a_precision_that_we_leave_open(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"bf16": {"enabled": True}}))
    deepspeed_settings(EngineConfig("deepspeed", deepspeed_config=path), "auto", 128)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"{", "is not a JSON object"), (b"\xff", "is not a JSON object")],
)
def test_refuses_a_deepspeed_json_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "ds.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"engine.deepspeed_config=.*ds.json {message}.*; correct"):
        deepspeed_settings(EngineConfig("deepspeed", deepspeed_config=path), "bf16", 128)


def test_takes_from_a_deepspeed_json_what_our_settings_leave_open(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    given = {
        "train_batch_size": 128,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000, "overlap_comm": "auto"},
        "wall_clock_breakdown": True,
    }
    path.write_text(json.dumps(given))
    config, settings = deepspeed_settings(EngineConfig("deepspeed", deepspeed_config=path), "bf16", 128)
    assert (config.zero_stage, config.max_gradient_norm) == (2, 1.0)
    assert settings["zero_optimization"]["stage"] == 2
    assert settings["zero_optimization"]["reduce_bucket_size"] == 1000
    assert settings["gradient_clipping"] == 1.0
    assert settings["wall_clock_breakdown"] is True
    assert "bf16" not in settings  # autocast is ours
