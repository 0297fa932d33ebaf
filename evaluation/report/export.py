"""The export of a checkpoint: its weights in each form, how images become its input, and the model card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

from evaluation.data.feature_sources import choose_checkpoints
from evaluation.report.card import model_card
from evaluation.report.shard_folders import ShardFolder, shard_folders
from evaluation.results.results import RESULTS_NAME, Results, read_results
from infra.configuration import config as configuration
from infra.errors import UserError
from infra.log import say
from infra.storage.files import atomic_folder, real_path, remove_remains, require_space, sha256_file
from infra.storage.json_files import BadJson, decode_json, encode_json
from ssl_core.checkpoints.ancestor import Ancestor
from ssl_core.checkpoints.checkpoint import MODEL, CheckpointState, step_of
from ssl_core.checkpoints.export.folder import CARD, VERSION, Contents, Packing, Preparation
from ssl_core.checkpoints.export.write import write_contents, write_forms
from ssl_core.checkpoints.tensors import load_backbone
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.views.parameters import Fit

T = TypeVar("T")

_MOST_COPIES: Final = 3  # of the weights: in torchvision's names, in timm's, and as ONNX


def export(run: Path, out: Path, epoch: int | None, channels: int, *, onnx: bool) -> None:
    """Write the backbone of a run as a folder that other libraries load.

    Args:
        run: the run
        out: the folder; a file or folder of that name is replaced
        epoch: of the checkpoint; None for the last one
        channels: of the images, 1 or 3
        onnx: whether to write an ONNX file, which needs the extra `onnx`

    Raises:
        UserError: if there is no such run or checkpoint, or the folder cannot be written; nothing is left behind
        RunFailed: if the checkpoint is damaged, or a form has other features than the checkpoint
    """
    out = real_path(out)
    config = configuration.load(PretrainConfig, run / "config.yaml", command="pretrain")
    [checkpoint] = choose_checkpoints(run, "last" if epoch is None else [epoch], "checkpoint")
    backbone = load_backbone(checkpoint)
    path = real_path(checkpoint.path) / MODEL
    sha256 = sha256_file(path)
    results = read_results(run)
    data = shard_folders(config.data)
    preparation = _preparation(config, checkpoint.state, channels, data, results)
    contents = Contents(
        version=VERSION,
        sternum=version("sternum"),
        network=backbone.name,
        channels=channels,
        feature_size=backbone.feature_size,
        run=run.resolve().name,
        step=checkpoint.step,
        epoch=checkpoint.epoch,
        checkpoint_sha256=sha256,
        ancestors=[_without_folders(weights) for weights in checkpoint.state.lineage(str(path), sha256)],
    )
    require_space(out, _MOST_COPIES * sum(tensor.nbytes for tensor in backbone.state_dict().values()))
    if out.parent.is_dir():
        remove_remains(out.parent, out.name)
    with atomic_folder(out) as folder:
        forms = write_forms(folder, backbone.network, preparation, onnx=onnx, what=f"channels={channels}")
        card = model_card(config, checkpoint, contents, preparation, forms, data, results)
        (folder / CARD).write_text(card, encoding="utf-8")
        write_contents(folder, contents)
    if forms.not_in_timm:
        say(f"{out} has no config.json for timm and transformers: {forms.not_in_timm}")


def _without_folders(ancestor: Ancestor) -> Ancestor:
    """Return weights by the end of their path: an export is made to be published, and a folder may name people."""
    parts = Path(ancestor.weights).parts
    is_checkpoint = parts[-1] == MODEL and len(parts) > 1 and step_of(parts[-2]) is not None
    return replace(ancestor, weights="/".join(parts[-4:] if is_checkpoint else parts[-1:]), shards=[])


@dataclass(frozen=True)
class _ProbedInput:
    """The options of a probe that decide what its backbones see, with its defaults."""

    probe_fit: Fit = "pad"
    mirrored: bool = False


def _preparation(
    config: PretrainConfig,
    state: CheckpointState,
    channels: int,
    data: Sequence[ShardFolder],
    results: Results | None,
) -> Preparation:
    """Return how images became the input: as in the probe, if the run was probed, else by the defaults of a probe."""
    probed = _converted(results.config, _ProbedInput, RESULTS_NAME) if results else _ProbedInput()
    manifests = [folder.manifest for folder in data if folder.manifest]
    return Preparation(
        size_px=results.run.probed_px if results and results.run else config.views.size_px,
        channels=channels,
        mean=state.pixel_mean,
        std=state.pixel_std,
        fit=probed.probe_fit,
        mirrored=probed.mirrored,
        antialias=config.views.antialias,
        packing=[
            _converted(manifest.options | {"set": manifest.name}, Packing, f"the manifest of {manifest.name}")
            for manifest in manifests
        ],
    )


def _converted(options: Mapping[str, Any], record: type[T], source: str) -> T:
    """Return options, which somebody else may have written, as a record."""
    try:
        return decode_json(encode_json(options), record)
    except BadJson as error:
        raise UserError(f"{source} has options that no version of Sternum wrote: {error}; restore the file") from error
