"""A folder that timm and transformers load: `config.json` beside weights with timm's names.

Import this module only after `require_extra("timm", ...)`.
"""

from pathlib import Path
from typing import Any, Final

import timm

from infra.errors import UserError
from infra.storage.json_files import encode_json
from ssl_core.checkpoints.export.check import TOLERANCE, Reference, features_of
from ssl_core.checkpoints.export.folder import WEIGHTS, Preparation
from ssl_core.checkpoints.export.timm_names import SUBFOLDER, in_timm_names, timm_name
from ssl_core.checkpoints.tensor_file import write_tensors
from ssl_core.model.architectures import TIMM, Network, build_network

CONFIG: Final = "config.json"
_CROP_MODES: Final = {"pad": "border", "squash": "squash", "square": "center"}


class NotInTimm(Exception):
    """timm has no such network; the message is the reason."""


def write_timm(folder: Path, network: Network, preparation: Preparation, expected: Reference) -> Path:
    """Write what timm needs into an export that holds model.safetensors already.

    Args:
        folder: the export
        network: the network with the channels of the export
        preparation: how an image becomes the input
        expected: the features that timm's network must have

    Returns:
        The folder to give timm: the export, or a folder in it with weights of its own where timm's names differ.

    Raises:
        NotInTimm: if timm has no network with these features
    """
    name = timm_name(network.name)
    try:
        twin = build_network(name, preparation.size_px, preparation.channels)
        twin.module.load_state_dict(in_timm_names(network, twin.module.state_dict()))
    except (UserError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise NotInTimm(
            f"timm {timm.__version__} has no network with the weights of {network.name} ({reason})"
        ) from error
    if expected.difference(features_of(twin.module, expected.images)) > 1:
        raise NotInTimm(
            f"{name} of timm {timm.__version__} has the weights of {network.name}, but its features differ by more "
            f"than {TOLERANCE:g}"
        )
    target = folder
    if twin.module.state_dict().keys() != network.module.state_dict().keys():
        target = folder / SUBFOLDER
        target.mkdir()
        write_tensors(target / WEIGHTS, twin.module.state_dict())
    (target / CONFIG).write_bytes(encode_json(_config(name.removeprefix(TIMM), twin, preparation)))
    return target


def _config(architecture: str, twin: Network, preparation: Preparation) -> dict[str, Any]:
    """Return the configuration in timm's format, without what timm says of weights of its own."""
    published = timm.get_pretrained_cfg(architecture)
    channels, size_px = preparation.channels, preparation.size_px
    sizes = {"img_size": size_px} if published.fixed_input_size else {}
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": twin.feature_size,
        "model_args": {"in_chans": channels, **sizes},
        "pretrained_cfg": {
            "tag": "sternum",
            "custom_load": False,
            "input_size": [channels, size_px, size_px],
            "fixed_input_size": published.fixed_input_size,
            "interpolation": preparation.interpolation,
            "crop_pct": 1.0,
            "crop_mode": "squash"
            if preparation.fit == "squash"
            else "border"
            if preparation.fit == "pad"
            else "center",
            "mean": [preparation.mean] * channels,
            "std": [preparation.std] * channels,
            "num_classes": 0,
            "pool_size": None,
            "first_conv": published.first_conv,
            "classifier": published.classifier,
        },
    }
