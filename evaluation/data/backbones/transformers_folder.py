"""Vision models of transformers, as a folder with config.json and model.safetensors; nothing is downloaded."""

import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor, nn
from typing_extensions import override

from evaluation.data.backbones.origins import Loaded
from infra.errors import UserError, require
from infra.extras import require_extra
from infra.storage.json_files import BadJson, read_json
from ssl_core.model.published import Input

CONFIG: Final = "config.json"
PREPROCESSOR: Final = "preprocessor_config.json"
WEIGHTS: Final = "model.safetensors"
_POOLER: Final = "pooler."  # parameters that many checkpoints lack
_OWN_ATTENTION: Final = (None, "eager", "sdpa")  # another name may be code to download


@dataclass(frozen=True)
class _ModelType:
    model_type: str = ""


_Size = int | dict[str, int] | None


@dataclass(frozen=True)
class _Preprocessor:
    """What preprocessor_config.json says; the defaults are those of transformers."""

    size: _Size = None
    crop_size: _Size = None
    do_center_crop: bool | None = None
    do_rescale: bool | None = True
    rescale_factor: float = 1 / 255
    do_normalize: bool | None = True
    image_mean: list[float] | None = None
    image_std: list[float] | None = None

    def input(self) -> Input | None:
        """Return the images, on the scale 0 to 1; None if the file does not say all of it."""
        cropped = self.crop_size is not None and self.do_center_crop is not False
        sides = self.crop_size if cropped else self.size
        size_px = set(sides.values()) if isinstance(sides, dict) else {sides}
        scale = 255 * self.rescale_factor if self.do_rescale else 255.0
        mean, std = (self.image_mean, self.image_std) if self.do_normalize else ([0.0], [1.0])
        if len(size_px) != 1 or None in size_px or not mean or not std:
            return None
        return Input(int(size_px.pop() or 0), tuple(x / scale for x in mean), tuple(x / scale for x in std))


def is_transformers_folder(folder: Path) -> bool:
    """Return whether a folder looks like a model of transformers; `TransformersFolder` checks it."""
    return (folder / CONFIG).is_file()


@dataclass(frozen=True)
class TransformersFolder:
    """A model of transformers.

    Attributes:
        folder: the folder
        what: the option with its value, for messages
    """

    folder: Path
    what: str

    def __post_init__(self) -> None:
        """Raise UserError if this is another kind of folder, or transformers is not installed."""
        try:
            model_type = read_json(self.folder / CONFIG, _ModelType).model_type
        except (FileNotFoundError, BadJson) as error:
            raise UserError(f"{self.what}: {self.folder / CONFIG} cannot be read: {error}; copy it again") from error
        require(
            bool(model_type),
            f"{self.what}: its {CONFIG} names no model_type, so it is no model of transformers; name the file with its "
            f"network, such as {self.path}@timm/resnet50",
        )
        require_extra("transformers", self.what, instead="name a file of torchvision or timm")

    @property
    def path(self) -> Path:
        """The file with the weights."""
        return self.folder / WEIGHTS

    @property
    def architecture(self) -> str:
        """Type of the model, such as `transformers/dinov2`."""
        return f"transformers/{read_json(self.folder / CONFIG, _ModelType).model_type}"

    @property
    def input(self) -> Input | None:
        """The images that preprocessor_config.json describes."""
        try:
            return read_json(self.folder / PREPROCESSOR, _Preprocessor).input()
        except FileNotFoundError:
            return None
        except BadJson as error:
            raise UserError(f"{self.what}: {self.folder / PREPROCESSOR} cannot be read: {error}; mend it") from error

    @property
    def antialias(self) -> bool:
        """Transformers reduces images without aliasing."""
        return True

    def load(self, size_px: int) -> Loaded:
        """Read the model; without weights for its pooling, its features are not the pooled output."""
        config = self._config()
        try:
            model, report = _transformers().AutoModel.from_pretrained(
                self.folder.absolute(),
                config=config,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype="float32",
                output_loading_info=True,
            )
        except Exception as error:  # a stranger's file fails in any way
            raise self._refused(error) from error
        missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
        lacking = [name for name in missing if not name.startswith(_POOLER)] + list(map(str, report["mismatched_keys"]))
        require(
            not lacking,
            f"{self.what} lacks {len(lacking)} of the values of its network ({', '.join(lacking[:3])}); copy or "
            "download the folder again",
        )
        features = self._features(model, size_px)
        skipped = f"; skipped others: {len(unexpected)} ({', '.join(unexpected[:3])})" if unexpected else ""
        return Loaded(features, config.num_channels, f"{type(model).__name__}, {features.output}{skipped}")

    def random(self, size_px: int, channels: int) -> nn.Module:
        """Return the model with random weights."""
        model = _transformers().AutoModel.from_config(self._config(), trust_remote_code=False)
        return self._features(model, size_px)

    def _features(self, model: Any, size_px: int) -> "_Features":
        try:
            return _Features(model, size_px, pools=self._has_pooling_of(model)).eval()
        except Exception as error:  # each model has its own way to fail
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{self.what} does not take images of {size_px} px ({reason}); give another size"
            ) from error

    def _has_pooling_of(self, model: Any) -> bool:
        """Return whether the file has all weights of the model's pooling, which may need none."""
        wanted = [name for name, _ in model.named_parameters() if name.startswith(_POOLER)]
        with safe_open(self.path, framework="numpy") as file:
            stored = list(file.keys())
        return all(any(name.endswith(each) for name in stored) for each in wanted)

    def _config(self) -> Any:
        """Return the configuration, without running code that its folder or the hub holds."""
        require(
            self.path.is_file(),
            f"{self.what} holds no {WEIGHTS}, and Sternum unpickles nothing; save the model with "
            "save_pretrained(safe_serialization=True)",
        )
        try:
            config = _transformers().AutoConfig.from_pretrained(
                self.folder.absolute(), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # a stranger's file fails in any way
            raise self._refused(error) from error
        attention = config._attn_implementation
        require(
            attention in _OWN_ATTENTION,
            f"{self.what}: its {CONFIG} asks for the attention {attention!r}, which is code from elsewhere; remove "
            "that line",
        )
        return config

    def _refused(self, error: Exception) -> UserError:
        reason = " ".join(str(error).split())[:300]
        return UserError(f"{self.what} cannot be loaded by transformers ({reason}); name the folder of a vision model")


class _Features(nn.Module):
    """One vector for an image from a model of transformers: (N, channels, H, W) -> (N, D).

    Attributes:
        model: the model
        output: which of its outputs that is
    """

    def __init__(self, model: Any, size_px: int, *, pools: bool) -> None:
        """Find out what the model gives for an image of this size; `pools` says whether its pooling has weights."""
        super().__init__()
        self.model = model.eval()
        # For models of one size, which resample their positions only if they are told to.
        takes = inspect.signature(model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
        with torch.inference_mode():
            given = self._outputs(torch.zeros(1, model.config.num_channels, size_px, size_px))
        has_cls_token = any(name.endswith("cls_token") for name, _ in model.named_parameters())
        pooled = pools and given.get("pooler_output") is not None
        self.output = "pooled output" if pooled else "CLS token" if has_cls_token else "mean of all tokens"

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of a batch of images."""
        given = self._outputs(images)
        pooled: Tensor
        if self.output == "pooled output":
            pooled = given["pooler_output"].flatten(1)
        elif self.output == "CLS token":
            pooled = given["last_hidden_state"][:, 0]
        else:
            pooled = given["last_hidden_state"].mean(dim=1)
        return pooled

    def _outputs(self, images: Tensor) -> Any:
        return self.model(pixel_values=images, **self._options)

    @override
    def extra_repr(self) -> str:
        """Say what the layers do not show, such as the number of heads, because the text identifies stored features."""
        return f"{self.output}, {sorted(self.model.config.to_diff_dict().items())}"


def _transformers() -> Any:
    """Import transformers, without its messages and without a way to the hub."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers  # noqa: PLC0415 (its import takes seconds)

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers
