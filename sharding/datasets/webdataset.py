"""WebDataset tars as others write them: img2dataset, MONAI, webdataset's own ShardWriter."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

from infra.configuration.options import key, setting
from infra.errors import UserError, require
from infra.log import say
from sharding.datasets.files import NOT_A_TAR, visible_files
from sharding.datasets.labels import LabelParser
from sharding.datasets.patient_fields import SPLITS, CellParser, identifier_of, split_of
from sharding.datasets.table import OddCells, require_files
from sharding.datasets.webdataset_tars import CLASS, TarReader, TarSample
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample, key_of_path

_FIELDS: Final = ("patient", "study", "split", "view", "sex", "age", "day", "label")
_COMPRESSED: Final = re.compile(r".*\.(?:tgz|tbz2?|txz|tar\.(?:gz|bz2|xz|zst))", re.IGNORECASE)


@dataclass(frozen=True)
class WebdatasetOptions:
    """What the members of a WebDataset mean: fields of each sample's JSON by name, or the member cls.

    Args:
        download: folder that receives and keeps the tars of a root that is a URL
        image: extension of the image, such as image.png, for samples with several images
        patient: field with the patient; without it, each image counts as a separate patient
        study: field with the examination, unique within a patient
        split: field with the split; by default the split that a tar's path names, such as train-0001.tar or val/1.tar
        view: field with the view, such as PA, AP or LATERAL
        sex: field with the sex, F or M
        age: field with the age in years, or as 058Y, 011M, 004W, 003D
        day: field with the day of the examination, a number of days from any start that is the patient's own; no dates,
            since shards hold none
        label: field with a class or a list of classes, or cls for the member KEY.cls
        label_separator: text between the classes of one text, such as |
        labels: fields with one label each: 1, 0, -1 (uncertain) or null (unknown)
    """

    download: Path | None = None
    image: str | None = None
    patient: str | None = None
    study: str | None = None
    split: str | None = None
    view: str | None = None
    sex: str | None = None
    age: str | None = None
    day: str | None = None
    label: str | None = None
    label_separator: str | None = None
    labels: list[str] | None = None

    def __post_init__(self) -> None:
        """Raise UserError for a separator without classes."""
        require(
            self.label_separator is None or (self.label_separator.strip() != "" and self.label is not None),
            f"{setting(self, 'label_separator')} is between classes; name their field too: {key(self, 'label')}",
        )

    def recorded(self) -> dict[str, Any]:
        """Return what the manifest says of these options: what the members mean, not where they are."""
        return {name: value for name, value in asdict(self).items() if name != "download"}

    def option_of(self) -> dict[str, str]:
        """Return the fields to read, each with the option that names it."""
        named = {getattr(self, name): key(self, name) for name in _FIELDS if getattr(self, name) is not None}
        return named | dict.fromkeys(self.labels or (), key(self, "labels"))


def read(root: Path, options: WebdatasetOptions, *, follow_links: bool = False) -> Iterator[Sample | Rejection]:
    """Read the samples of all `.tar` files below `root`.

    A sample has one image; a sample without one or with several, damaged metadata and a member without a key are
    rejected. Its key in the set is made of the tar's path and its own key, because the tars of two splits often repeat
    keys; its path is that of the member below the tar. Members that are not used are counted by extension.

    Raises:
        UserError: if `root` has no tar, a tar is damaged or compressed, a field is in no sample, a split or label means
            nothing, or only some tars name a split
    """
    files = list(visible_files(root, follow_links=follow_links)) if root.is_dir() else []
    tars = [path for path in files if isinstance(path, Path) and path.suffix == ".tar"]
    compressed = next((path for path in files if isinstance(path, Path) and _COMPRESSED.fullmatch(path.name)), None)
    if compressed:
        raise UserError(f"{root / compressed} is compressed, so its members have no place; decompress it first")
    require_files(root, "webdataset", ("*.tar",), bool(tars))
    for item in files:
        if isinstance(item, Rejection):
            yield item
        elif item.suffix != ".tar":
            yield Rejection(item.as_posix(), NOT_A_TAR)
    yield from _Dataset(root, tars, options).samples()


class _Dataset:
    """The tars of a dataset, and what their metadata means."""

    def __init__(self, root: Path, tars: list[Path], options: WebdatasetOptions) -> None:
        self._root, self._tars, self._options = root, tars, options
        self._splits = dict.fromkeys(tars) if options.split else _splits(root, tars)
        self._labels = LabelParser(options.labels or (), options.label, options.label_separator, options.option_of())
        self._parser, self._odd_splits = CellParser(), OddCells()

    def samples(self) -> Iterator[Sample | Rejection]:
        options = self._options
        if options.label is not None:
            found = (item for item in self._read() if isinstance(item, TarSample))
            self._labels.find_classes((f"{item.tar}: {item.key}", item.cells) for item in found)
        for item in self._read(speak=True):
            yield self._sample(item) if isinstance(item, TarSample) else item
        self._odd_splits.refuse(f"a split is one of {', '.join(SPLITS)}, or blank; correct the JSON")
        self._labels.finish(self._root.name)
        self._parser.odd.warn()
        if options.patient is None:
            say(
                "warning: the images have no patients, so each counts as a separate patient, in splits and in "
                f"confidence intervals; name the field with the patient: {key(options, 'patient')}"
            )

    def _read(self, *, speak: bool = False) -> Iterator[TarSample | Rejection]:
        """Yield the samples of all tars; a second time for the classes, whose names every sample needs."""
        option_of = self._options.option_of()
        reader = TarReader(self._root, self._options.image, tuple(option_of))
        yield from chain.from_iterable(map(reader.read, self._tars))
        for name in sorted(reader.missing):
            has = ", ".join(reader.present) or "none"
            raise UserError(f"{option_of[name]}={name} is in no sample of {self._root}; the first one has {has}")
        if speak and reader.unused:
            unused = ", ".join(f"{extension} ({count})" for extension, count in sorted(reader.unused.items()))
            hint = f"; --{key(self._options, 'label')}=cls makes classes of cls" if CLASS in reader.unused else ""
            say(f"{self._root.name}: members that are not used: {unused}{hint}")

    def _sample(self, item: TarSample) -> Sample | Rejection:
        options, where = self._options, f"{item.tar}: {item.key}"
        path = item.tar / item.image.name
        text = {name: _text(item.cells, getattr(options, name)) for name in _FIELDS}
        patient = identifier_of(text["patient"]) if options.patient else path.as_posix()
        if patient is None:
            return Rejection(path.as_posix(), "sample without a patient")
        if text["split"] and split_of(text["split"]) is None:
            self._odd_splits.add(str(options.split), text["split"], where)
        return Sample(
            key=key_of_path(item.tar / item.key),
            path=path,
            patient=patient,
            study=identifier_of(text["study"]),
            view=self._parser.view(str(options.view), text["view"], where),
            sex=self._parser.sex(str(options.sex), text["sex"], where),
            age=self._parser.age(str(options.age), text["age"], where),
            day=self._parser.day(str(options.day), text["day"], where),
            split=split_of(text["split"]) if options.split else self._splits[item.tar],
            labels=self._labels.parse(where, item.cells),
            member=(item.tar.as_posix(), item.image.offset, item.image.size_bytes),
        )


def _text(cells: Mapping[str, str | list[str]], name: str | None) -> str:
    cell = cells[name] if name else ""
    return cell if isinstance(cell, str) else "|".join(cell)


def _splits(root: Path, tars: list[Path]) -> dict[Path, str | None]:
    """Return the split that each tar's path names as one of its words; all tars name one, or none does."""
    splits: dict[Path, str | None] = {}
    for tar in tars:
        words = re.split(r"[^A-Za-z]+", tar.with_suffix("").as_posix())
        named = {split for word in words if (split := split_of(word))}
        splits[tar] = named.pop() if len(named) == 1 else None
    without = [tar for tar, split in splits.items() if split is None]
    if without and len(without) < len(tars):
        with_one = next(tar for tar, split in splits.items() if split)
        raise UserError(
            f"root={root}: {with_one} names the split {splits[with_one]}, {without[0]} none or two; rename the tars, "
            f"or name the field with the split: {key(WebdatasetOptions, 'split')}"
        )
    return splits
