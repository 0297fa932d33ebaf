"""The networks of kept probes: described when a run is probed, and opened again for new images."""

from collections.abc import Sequence
from pathlib import Path

from evaluation.data.feature_sources import FeatureSource
from evaluation.data.features import Preprocessing
from evaluation.results.backbones import OutsideBackbone
from evaluation.results.kept_probes import KeptBackbone
from infra.json_files import read_json
from ssl_core.checkpoints.checkpoint import MANIFEST, MODEL, Checkpoint, Manifest, checkpoint_path


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
        network, weights, sha256 = other.network, other.file, other.sha256
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
    )
