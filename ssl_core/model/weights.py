"""Weights that others saved: reading them without running code, and fitting their names to a network."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from infra.errors import UserError, require
from infra.storage.files import regular_size, sha256_file
from ssl_core.model.architectures import Network, one_channel, resampled_positions

LEAST_SHARE: Final = 0.9  # of a network's parameters, below which a file is not that network's

# Parts of a method that follow the trained network or are not evaluated by its authors (MoCo, BYOL, solo-learn, DINO);
# taken only if a file has nothing else.
_COPIES: Final = re.compile(r"encoder_k|key_encoder|momentum|target|student|\bema\b|_ema\b")
# Before Python forbade dots in the names of modules, torchvision's DenseNets had `denselayer1.norm.1`.
_OLD_DENSENET: Final = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
_COUNTER: Final = "num_batches_tracked"  # of batch norm; it changes no result


@dataclass(frozen=True)
class Weights:
    """The tensors of a file.

    Attributes:
        name: the file as the user named it
        sha256: hash of the file's bytes
        tensors: by name; the names of nested dictionaries are joined by dots
    """

    name: str
    sha256: str
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Fit:
    """What a file gives to a network.

    Attributes:
        network: name of the network
        prefix: what stands in the file before the network's own names
        values: the network's parameters and buffers that the file has, by the network's names
        share: of the network's parameters, between 0 and 1
        parameters: number of the network's parameters
        missing: names that the file lacks
        misshapen: names with another shape in the file
        classifier: names of the classifier in the file, which nobody needs
        others: names of all else in the file
        foreign: those of them that stand within the network's own layers, as another architecture has them
        changes: how values were adapted
    """

    network: str
    prefix: str
    values: dict[str, Tensor]
    share: float
    parameters: int
    missing: list[str]
    misshapen: list[str]
    classifier: list[str]
    others: list[str]
    foreign: list[str]
    changes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Describe everything in one line."""
        parts = [
            f"{self.share:.1%} of the {self.parameters / 1e6:,.1f} million parameters of {self.network}",
            f"prefix {self.prefix!r}" if self.prefix else "",
            *self.changes,
            f"left random: {_count(self.missing)}" if self.missing else "nothing left random",
            f"of another shape, left random: {_count(self.misshapen)}" if self.misshapen else "",
            f"skipped the classifier: {_count(self.classifier)}" if self.classifier else "",
            f"skipped others: {_count(self.others)}" if self.others else "",
        ]
        return "; ".join(part for part in parts if part)


def _count(names: list[str]) -> str:
    """Return the number of names with the first three."""
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def read_weights(path: Path, name: str) -> Weights:
    """Read a safetensors file, or a PyTorch file without running code from it.

    Args:
        path: the file; its content tells the format
        name: the file as the user named it, for messages

    Raises:
        UserError: if it cannot be read, is damaged, or holds anything but tensors, numbers and text
    """
    try:
        regular_size(path)
        tensors = load_file(path) if _is_safetensors(path) else _unpickled(path, name)
        return Weights(name, sha256_file(path), tensors)
    except SafetensorError as error:
        raise UserError(f"{name} is a damaged safetensors file ({error}); copy or download it again") from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}; name a file with weights") from error


def _is_safetensors(path: Path) -> bool:
    """Return whether a file begins like one: the length of its header in 8 bytes, and a brace."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _unpickled(path: Path, name: str) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file fails in any way
        reason = " ".join(str(error).split()).partition(". ")[0][:200]
        raise UserError(
            f"{name} is damaged, or holds more than tensors, and Sternum runs no code from a file ({reason}); copy it "
            "again, or save only the model's state_dict() there"
        ) from error
    tensors = dict(_tensors_in(content, ""))
    require(bool(tensors), f"{name} holds no tensors; name a file with the state_dict() of a model")
    return tensors


def _tensors_in(content: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix.removesuffix("."), content.detach()
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors_in(value, f"{prefix}{key}.")


def fit(weights: Weights, network: Network, least_share: float = LEAST_SHARE) -> Fit:
    """Find a network's parameters in a file, whatever stands before their names, and adapt them.

    Weights of a stem for three channels are summed for a network with one channel, and the position embedding of a ViT
    is resampled for its size. The network does not change: see `load`.

    Args:
        weights: the file's content
        network: the network
        least_share: of the network's parameters that the file must have

    Raises:
        UserError: if the file has fewer of the network's parameters, or a value that is not finite
    """
    wanted = {name: value for name, value in network.module.state_dict().items() if not name.endswith(_COUNTER)}
    tensors = {_OLD_DENSENET.sub(r"\1\2", name): value for name, value in weights.tensors.items()}
    prefix, spelling = _spelling_in(tensors, wanted, network.module)
    found: dict[str, Tensor] = {}
    missing: list[str] = []
    misshapen: list[str] = []
    changes: list[str] = []
    for name, target in wanted.items():
        value = tensors.get(prefix + spelling(name))
        if value is None:
            missing.append(name)
            continue
        _require_channels(weights.name, network, name, value, target)
        adapted = _adapted(network, name, value, target, changes)
        if adapted.shape == target.shape:
            found[name] = adapted
        else:
            misshapen.append(f"{name} {tuple(value.shape)} instead of {tuple(target.shape)}")
    sizes = {name: parameter.numel() for name, parameter in network.module.named_parameters()}
    share = sum(size for name, size in sizes.items() if name in found) / sum(sizes.values())
    used = {prefix + spelling(name) for name in wanted}
    unused = [name for name in tensors if name not in used and not name.endswith(_COUNTER)]
    classifier = [name for name in unused if _is_of(name, prefix, network.classifiers)]
    others = [name for name in unused if name not in classifier]
    layers = {f"{prefix}{spelling(name).partition('.')[0]}." for name in wanted}
    foreign = [name for name in others if tensors[name].is_floating_point() and name.startswith(tuple(layers))]
    result = Fit(
        network.name,
        prefix,
        found,
        share,
        sum(sizes.values()),
        missing,
        misshapen,
        classifier,
        others,
        foreign,
        changes,
    )
    require(
        share >= least_share,
        f"{weights.name} does not hold a {network.name}: {result}; at least {least_share:.0%} are needed: name the "
        "architecture of the file, or another file",
    )
    _require_finite(weights.name, found)
    return result


def stem_channels(weights: Weights, network: Network) -> int:
    """Return the number of channels that the stem of a network has in a file; that of the network if it is missing."""
    wanted = network.module.state_dict()
    prefix, spelling = _spelling_in(weights.tensors, wanted, network.module)
    name = f"{network.stems[0]}.weight"
    stem = weights.tensors.get(prefix + spelling(name), wanted[name])
    return stem.shape[1] if stem.dim() == 4 else wanted[name].shape[1]


def load(result: Fit, module: nn.Module) -> None:
    """Copy what `fit` found into the network for which it was called."""
    module.load_state_dict(result.values, strict=False)


def _spelling_in(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], module: nn.Module
) -> tuple[str, Callable[[str], str]]:
    """Return the prefix in a file, and how the file spells a network's names.

    A file may number the children of a network, as `nn.Sequential(*children)` does, which lightly's examples use.
    """
    numbers = {name: str(number) for number, (name, _) in enumerate(module.named_children())}

    def numbered(name: str) -> str:
        first, dot, rest = name.partition(".")
        return f"{numbers.get(first, first)}{dot}{rest}"

    spellings: list[Callable[[str], str]] = [str, numbered]
    best, prefix, spelling = -1, "", spellings[0]
    for way in spellings:
        matches = Counter[str]({"": 0})
        sizes = {way(name): value.numel() for name, value in wanted.items()}
        for key in tensors:
            for start in (0, *(found.end() for found in re.finditer(r"\.", key))):
                matches[key[:start]] += sizes.get(key[start:], 0)
        most = max(matches.values())
        equal = [candidate for candidate, size in matches.items() if size == most]
        if most > best:
            best, spelling = most, way
            prefix = next((candidate for candidate in equal if not _COPIES.search(candidate)), equal[0])
    return prefix, spelling


def _adapted(network: Network, name: str, value: Tensor, target: Tensor, changes: list[str]) -> Tensor:
    """Return a tensor in the shape of the network's, if there is a way, and note how."""
    if value.shape == target.shape:
        return value
    if _is_stem(network, name, value) and (value.shape[1], target.shape[1]) == (3, 1):
        changes.append(f"3 channels of {name} summed into one")
        return one_channel(value.float())
    positions = resampled_positions(network, name, value.float())
    if positions.shape != value.shape:
        changes.append(f"{name} resampled from {value.shape[1]} to {positions.shape[1]} tokens")
    return positions


def _is_stem(network: Network, name: str, value: Tensor) -> bool:
    return name in [f"{stem}.weight" for stem in network.stems] and value.dim() == 4


def _require_channels(file: str, network: Network, name: str, value: Tensor, target: Tensor) -> None:
    if _is_stem(network, name, value) and value.shape[2:] == target.shape[2:]:
        channels, wanted = value.shape[1], target.shape[1]
        require(
            channels == wanted or (channels, wanted) == (3, 1),
            f"{file} is for images of {channels} channels ({name}), but {network.name} takes {wanted} here; use a file "
            "for 1 or 3 channels",
        )


def _is_of(name: str, prefix: str, layers: tuple[str, ...]) -> bool:
    """Return whether a name in a file belongs to one of these layers; `heads` has `heads.head` and all else in it."""
    own = name.removeprefix(prefix)
    return name.startswith(prefix) and any(own.startswith(f"{layer.partition('.')[0]}.") for layer in layers)


def _require_finite(name: str, tensors: Mapping[str, Tensor]) -> None:
    for tensor, value in tensors.items():
        damaged = int((~value.isfinite()).sum())
        require(
            damaged == 0,
            f"{name} holds {damaged} values in {tensor} that are not finite; its training diverged or the file is "
            "damaged: take another file",
        )
