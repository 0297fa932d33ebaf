"""The weights that a run starts from instead of random ones: `model.init`."""

from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

from infra.configuration.options import setting
from infra.errors import RunFailed, UserError, require
from infra.log import say
from infra.storage.files import regular_size, sha256_file, write_atomic
from infra.storage.json_files import BadJson, encode_json, read_json
from infra.words import counted
from ssl_core.checkpoints.ancestor import Ancestor
from ssl_core.checkpoints.checkpoint import (
    MANIFEST,
    MODEL,
    Checkpoint,
    Manifest,
    find_checkpoints,
    find_damage,
    other_version,
    step_of,
)
from ssl_core.checkpoints.export.folder import is_export, open_export
from ssl_core.model.encoder import Encoder
from ssl_core.model.published import is_published_name, published_weights
from ssl_core.model.weights import Fit, fit, load, read_weights
from ssl_core.pretraining.config import PretrainConfig

RECORD: Final = "initial_weights.json"  # in the run folder
_SHOWN_DIGITS: Final = 12


@dataclass(frozen=True)
class Start:
    """What a run started from, as kept in the run folder.

    Attributes:
        init: model.init
        file: the file with the weights
        sha256: hash of the file
        backbone: what the file gave to the backbone
        head: what became of the projection head: loaded or random
        ancestors: these weights, and those that their own run descends from
    """

    init: str
    file: str
    sha256: str
    backbone: Fit
    head: str
    ancestors: list[Ancestor]

    def __str__(self) -> str:
        """Describe the start in one line."""
        text = f"starting from {self.file} (SHA-256 {self.sha256[:_SHOWN_DIGITS]}...): {self.backbone}; {self.head}"
        latest = self.ancestors[0]
        if latest.epoch is None:
            return text
        return f"{text}; trained for {counted(latest.epoch, 'epoch')} on {', '.join(latest.shards) or 'unknown shards'}"


def initial_sha256(config: PretrainConfig) -> str | None:
    """Return the hash of the file that `model.init` means, or None for random weights.

    Raises:
        UserError: if there is no such file
    """
    return _sha256(_file(config)) if config.model.init else None


def start_from(config: PretrainConfig, encoder: Encoder) -> Start | None:
    """Load the weights that `model.init` means into an untrained encoder; None if it means none.

    A checkpoint of Sternum gives its projection head too, if that has the same sizes; otherwise the head stays random.

    Raises:
        UserError: if the file cannot be read, belongs to another network, or holds a value that is not finite
    """
    init = config.model.init
    if init is None:
        return None
    path = _file(config)
    checkpoint = _checkpoint_around(path)
    if checkpoint:
        _require_whole(checkpoint, setting(config.model, "init"))
    weights = read_weights(path, str(path))
    found = fit(weights, encoder.backbone.network)
    load(found, encoder.backbone.network.module)
    head = encoder.head.state_dict()
    values = {name: weights.tensors.get(f"head.{name}") for name in head} if checkpoint else {}
    same = {name: value for name, value in values.items() if value is not None and value.shape == head[name].shape}
    is_loaded = same.keys() == head.keys()
    if is_loaded:
        encoder.head.load_state_dict(same)
        found = replace(found, others=[name for name in found.others if not name.startswith("head.")])
    outcome = f"projection head {'loaded too' if is_loaded else 'random'}"
    return Start(init, str(path), weights.sha256, found, outcome, _ancestors(path, weights.sha256, checkpoint))


def _ancestors(path: Path, sha256: str, checkpoint: Checkpoint | None) -> list[Ancestor]:
    """Return the weights in a file and those that their run descends from; of a foreign file nothing more is known."""
    if checkpoint:
        return checkpoint.state.lineage(str(path), sha256)
    if is_export(path.parent):
        latest, *earlier = open_export(path.parent, str(path)).contents.ancestors or [Ancestor("", "")]
        return [replace(latest, weights=str(path), sha256=sha256), *earlier]
    return [Ancestor(str(path), sha256)]


def record_start(run: Path, start: Start) -> None:
    """Print what a run starts from, and list all names in the run folder."""
    say(str(start))
    fields = asdict(start)
    fields["backbone"]["values"] = sorted(start.backbone.values)  # the names alone
    write_atomic(run / RECORD, encode_json(fields))


def _file(config: PretrainConfig) -> Path:
    """Return the file that `model.init` means."""
    init, what = str(config.model.init), setting(config.model, "init")
    if is_published_name(init):
        return published_weights(init, what).path
    path = Path(init).expanduser()
    require(path.exists(), f"{what} does not exist; name a file with weights, a run, a checkpoint, or an export")
    if not path.is_dir():
        return path
    if is_export(path):
        return open_export(path, what).weights
    if (path / MODEL).is_file():  # a checkpoint, or a folder in the style of Hugging Face
        return path / MODEL
    checkpoints = find_checkpoints(path)
    require(bool(checkpoints), f"{what} is a folder without a checkpoint or {MODEL}; name a file, or a run with one")
    return _chosen(checkpoints, _hash_at_start(config.run_folder)).path / MODEL


def _chosen(checkpoints: list[Checkpoint], sha256: str | None) -> Checkpoint:
    """Return the checkpoint that a run has already started from, else the newest: the other run may have gone on."""
    for checkpoint in checkpoints:
        with suppress(FileNotFoundError, BadJson, KeyError):
            if read_json(checkpoint.path / MANIFEST, Manifest).files[MODEL].sha256 == sha256:
                return checkpoint
    return checkpoints[-1]


def _hash_at_start(run: Path) -> str | None:
    """Return the hash of the weights that this run has started from; None for a new run."""
    with suppress(RunFailed):
        checkpoints = find_checkpoints(run)
        value = checkpoints[-1].state.config.get("model.init") if checkpoints else None
        return str(value) if value else None
    return None


def _checkpoint_around(path: Path) -> Checkpoint | None:
    step = step_of(path.parent.name)
    is_checkpoint = step is not None and path.name == MODEL and (path.parent / MANIFEST).is_file()
    return Checkpoint(path.parent, step) if is_checkpoint and step is not None else None


def _require_whole(checkpoint: Checkpoint, what: str) -> None:
    version = other_version(checkpoint)
    require(version is None, f"{what}: {checkpoint.path} is {version}; export its weights with that version")
    damage = find_damage(checkpoint)
    require(damage is None, f"{what}: {checkpoint.path} is damaged: {damage}; take another checkpoint")


def _sha256(path: Path) -> str:
    try:
        regular_size(path)
        status = path.stat()
        return _hash_of(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; name a file with weights") from error


@lru_cache(4)
def _hash_of(path: Path, size_bytes: int, changed_ns: int) -> str:
    """Hash a file once in a process, unless it changes."""
    return sha256_file(path)
