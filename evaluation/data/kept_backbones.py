"""The networks of kept probes: described when a run is probed, and opened again for new images."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from evaluation.data.backbones.opened import OpenedBackbone
from evaluation.data.backbones.origins import OfCheckpoint, Origin, StateDict
from evaluation.data.backbones.transformers_folder import TransformersFolder
from evaluation.data.feature_sources import FeatureSource
from evaluation.data.features import Preprocessing
from evaluation.results.backbones import OutsideBackbone
from evaluation.results.kept_probes import KeptBackbone, KeptProbe
from infra.errors import UserError, require
from infra.storage.files import regular_size, sha256_file
from infra.storage.json_files import read_json
from ssl_core.checkpoints.checkpoint import MANIFEST, MODEL, Checkpoint, Manifest, checkpoint_path, step_of
from ssl_core.checkpoints.tensors import load_backbone
from ssl_core.model.published import Input


def kept_backbone(
    run: Path, source: FeatureSource, preprocessing: Preprocessing, others: Sequence[OutsideBackbone]
) -> KeptBackbone:
    """Describe the network of a source.

    Args:
        run: the run folder
        source: a checkpoint of the run, or weights of others
        preprocessing: input of the source
        others: the weights of others
    """
    if source.step is None:
        other = next(other for other in others if other.name == source.name)
        network, weights, sha256 = other.network, str(Path(other.file).absolute()), other.sha256
        mean, std = other.mean, other.std
    else:
        checkpoint = Checkpoint(checkpoint_path(run, source.step), source.step)
        network, weights = checkpoint.state.backbone, (checkpoint.path / MODEL).relative_to(run).as_posix()
        sha256 = read_json(checkpoint.path / MANIFEST, Manifest).files[MODEL].sha256
        mean, std = [preprocessing.mean], [preprocessing.std]
    return KeptBackbone(
        network=network,
        weights=weights,
        sha256=sha256,
        size_px=preprocessing.size_px,
        mean=mean,
        std=std,
        fit=preprocessing.fit,
        mirrored=preprocessing.mirrored,
        executor=preprocessing.executor,
        antialias=preprocessing.antialias,
    )


def open_kept(run: Path, probe: KeptProbe) -> tuple[nn.Module, Preprocessing]:
    """Return the backbone of a kept probe, and its input.

    Raises:
        UserError: if its weights are gone, or others stand in their place
        RunFailed: if a checkpoint is damaged
    """
    backbone = probe.backbone
    what, path = f"the weights of {probe.features!r}, {backbone.weights},", run / backbone.weights
    way_out = "; probe the run again, or choose other features"
    try:
        regular_size(path)
        sha256 = sha256_file(path)
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror}{way_out}") from error
    require(sha256 == backbone.sha256, f"{what} have changed since the probe{way_out}")
    own = Preprocessing(backbone.size_px, 0.0, 1.0, "", backbone.fit, backbone.mirrored, backbone.antialias)
    if probe.step is not None:
        [mean], [std] = backbone.mean, backbone.std
        return load_backbone(Checkpoint(path.parent, probe.step)), replace(own, mean=mean, std=std)
    images = Input(backbone.size_px, tuple(backbone.mean), tuple(backbone.std))
    return OpenedBackbone(_origin(path, backbone, what), sha256, images, "").load(), own


def _origin(path: Path, backbone: KeptBackbone, what: str) -> Origin:
    """Return where the weights of others are from, by the file and its network."""
    if backbone.network.startswith("transformers/"):
        return TransformersFolder(path.parent, what)
    step = step_of(path.parent.name)
    if step is not None and (path.parent / MANIFEST).is_file():
        return OfCheckpoint(Checkpoint(path.parent, step))
    return StateDict(path, backbone.network, None, what, is_published=True)
