"""Writers of simulated radiographs in the layouts of two real datasets, for a first run and for tests.

The images are phantoms (`sharding.simulation.phantom`, `.exposure`): body, lungs, heart and bones as simple solids on a
film curve, and pneumonia as soft textured patches inside the lungs. Every part of Sternum can run on them without real
patients. A score on them shows that the machinery learns, and proves nothing about medicine.

`write_chexpert` writes the layout of CheXpert-v1.0-small (Irvin et al. 2019), `write_cell` that of the pediatric set
of Kermany et al. 2018 ("Cell" in Gazda et al. 2021). With the same seed they draw different patients. Every image
depends only on its patient and the seed: it is bit-identical in every call, whatever other images are drawn.
"""

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from infra.errors import require
from infra.log import progress
from infra.parallel.process_map import ordered_map, worker_count
from infra.storage.files import atomic_folder, disk_errors
from sharding.datasets.chexpert import COLUMNS, OBSERVATIONS
from sharding.datasets.files import SIMULATED_MARKER
from sharding.simulation.exposure import radiograph
from sharding.simulation.phantom import Anatomy, Draws, Opacity, draw_anatomy, draw_opacities

CARDIOMEGALY_RATIO = 0.50
CELL_SPLITS = ("train", "val", "test")
NOTE = "Simulated images of chest phantoms, drawn by Sternum: no real patients, no evidence about medicine.\n"
_FIRST_VALID_PATIENT = 64541  # upstream's numbering of valid.csv
_JPEG_QUALITY = 92
_POOL_FROM_JOBS = 100  # with fewer jobs, starting processes takes longer than drawing

T = TypeVar("T")


@dataclass(frozen=True)
class _Study:
    """One examination: its drawn findings, projections and labels."""

    opacities: tuple[Opacity, ...]
    lines: int
    projections: tuple[str, ...]
    labels: dict[str, int]


def write_chexpert(root: Path, patients: int, seed: int, size_px: int = 160) -> None:
    """Write train.csv, valid.csv and the images of CheXpert.

    Patients have 1 to 3 studies of 1 or 2 images: about two images each, 85 % of them frontal. About one patient in
    twenty is in valid. Labels describe the drawing, as 1.0, 0.0, -1.0 (uncertain) or blank; valid.csv has no -1.0.

    Args:
        root: the new folder
        patients: the number of patients, 2 to 50000
        seed: the seed of all images
        size_px: the shorter side of the images, 32 to 2048

    Raises:
        UserError: if `root` is not empty, a number is out of range, or the disk is full
    """
    require(2 <= patients <= 50_000, f"patients={patients} must be between 2 (one for train, one for valid) and 50000")
    _check(root, seed, size_px)
    valid = max(1, patients // 20)
    names = [("train", n + 1) for n in range(patients - valid)]
    names += [("valid", n + _FIRST_VALID_PATIENT) for n in range(valid)]
    rows: dict[str, list[dict[str, str]]] = {"train": [], "valid": []}
    with atomic_folder(root) as folder:
        jobs = [(folder, split, number, seed, size_px) for split, number in names]
        for (split, _), patient_rows in zip(names, _drawn(_write_chexpert_patient, jobs), strict=True):
            rows[split] += patient_rows
        for split, split_rows in rows.items():
            with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(split_rows)
        (folder / SIMULATED_MARKER).write_text(NOTE, encoding="utf-8")


def write_cell(root: Path, images: dict[str, int], seed: int, size_px: int = 160) -> None:
    """Write {train,val,test}/{NORMAL,PNEUMONIA}/, half of the images with pneumonia.

    Names are upstream's (`IM-0115-0001.jpeg`, `person1_bacteria_2.jpeg`), but each patient is in one split only. All
    images are frontal; a patient has one to three of them.

    Args:
        root: the new folder
        images: the number of images in each split, 2 or more
        seed: the seed of all images
        size_px: the shorter side of the images, 32 to 2048

    Raises:
        UserError: if `root` is not empty, a number is out of range, or the disk is full
    """
    unknown = sorted(set(images) - set(CELL_SPLITS))
    require(not unknown, f"images={unknown[:1]} is not a split; use {', '.join(CELL_SPLITS)}")
    for split, count in images.items():
        require(count >= 2, f"images[{split}]={count} must be at least 2: one of each class")
    _check(root, seed, size_px)
    with atomic_folder(root) as folder:
        for split in CELL_SPLITS:
            for name in ("NORMAL", "PNEUMONIA"):
                (folder / split / name).mkdir(parents=True)
        jobs = [(folder / path, *job, seed, size_px) for path, *job in _cell_images(images, seed)]
        for _ in _drawn(_write_cell_image, jobs):
            pass
        (folder / SIMULATED_MARKER).write_text(NOTE, encoding="utf-8")


def _check(root: Path, seed: int, size_px: int) -> None:
    require(32 <= size_px <= 2048, f"size_px={size_px} must be between 32 and 2048")
    require(seed >= 0, f"seed={seed} must not be negative")
    require(not root.is_file(), f"{root} is a file; choose a new folder")
    empty = not root.exists() or not any(root.iterdir())
    require(empty, f"{root} is not empty; choose another folder, or delete it first")


def _drawn(function: Callable[[tuple[Any, ...]], T], jobs: list[tuple[Any, ...]]) -> Iterator[T]:
    """Run the jobs, many of them in two processes, and yield their results in order."""
    workers = 1 if len(jobs) < _POOL_FROM_JOBS else min(2, worker_count(0, len(jobs)))
    with closing(ordered_map(function, jobs, workers, chunk=16)) as results:
        yield from progress(results, "simulating", len(jobs))


def _save(image: npt.NDArray[np.uint8], path: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=_JPEG_QUALITY)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.getvalue())


def _draw_study(seed: int, patient: int, study: int, anatomy: Anatomy) -> _Study:
    draws = Draws(seed, "chexpert-study", patient, study)
    sick, portable = draws.chance(0.5), draws.chance(0.5)
    lines = 1 + int(draws.between(0, 4)) if draws.chance(0.55 if portable else 0.1) else 0
    projections = ["AP" if portable else "PA"]
    projections += projections if draws.chance(0.2) else []
    projections += ["lateral"] if not portable and draws.chance(0.45) else []
    viral = draws.chance(0.4)
    opacities = draw_opacities(seed, "chexpert", patient, study, viral) if sick else ()
    sure = patient >= _FIRST_VALID_PATIENT  # radiologists labeled valid.csv, a program labeled train.csv from reports
    present = {"Support Devices": 1} if lines else {}
    if sick:
        doubt = 0.0 if sure else draws.between(0, 1)
        present |= {"Lung Opacity": 1}
        present |= {"Pneumonia": 1} if doubt < 0.6 else {"Pneumonia": -1} if doubt < 0.85 else {}
        present |= {"Consolidation": 1} if max(opacity.strength for opacity in opacities) > 0.34 else {}
    if anatomy.heart_ratio > CARDIOMEGALY_RATIO or (anatomy.heart_ratio > CARDIOMEGALY_RATIO - 0.02 and not sure):
        present["Cardiomegaly"] = 1 if anatomy.heart_ratio > CARDIOMEGALY_RATIO else -1
    if not set(present) - {"Support Devices"}:
        present["No Finding"] = 1
    mentioned = ("Cardiomegaly", "Pleural Effusion", "Pneumothorax", *([] if sick else ["Pneumonia"]))
    absent = OBSERVATIONS if sure else [name for name in mentioned if draws.chance(0.2)]
    return _Study(opacities, lines, tuple(projections), dict.fromkeys(absent, 0) | present)


def _write_chexpert_patient(job: tuple[Path, str, int, int, int]) -> list[dict[str, str]]:
    """Draw and save one patient's images; return their rows of the CSV."""
    folder, split, patient, seed, size_px = job
    anatomy = draw_anatomy(seed, "chexpert", patient)
    chance = Draws(seed, "chexpert-studies", patient).between(0, 1)
    rows = []
    for study_number in range(1, 2 + (chance > 0.7) + (chance > 0.9)):
        study = _draw_study(seed, patient, study_number, anatomy)
        labels = {name: "" if name not in study.labels else f"{study.labels[name]:.1f}" for name in OBSERVATIONS}
        for view, projection in enumerate(study.projections, 1):
            side = "Lateral" if projection == "lateral" else "Frontal"
            name = f"{split}/patient{patient:05d}/study{study_number}/view{view}_{side.lower()}.jpg"
            number = 16 * study_number + view
            image = radiograph(
                seed, "chexpert", patient, number, anatomy, study.opacities, projection, study.lines, size_px
            )
            _save(image, folder / name)
            rows.append(
                {
                    "Path": f"CheXpert-v1.0-small/{name}",
                    "Sex": anatomy.sex,
                    "Age": str(anatomy.age),
                    "Frontal/Lateral": side,
                    "AP/PA": "" if projection == "lateral" else projection,
                    **labels,
                }
            )
    return rows


def _cell_images(images: dict[str, int], seed: int) -> Iterator[tuple[str, int, int, bool | None]]:
    """Yield each image's path, patient, number among the patient's images, and whether it is viral (None: healthy)."""
    numbers = {"NORMAL": 0, "PNEUMONIA": 0}
    running = 0
    for split in CELL_SPLITS:
        count = images.get(split, 0)
        for name, class_count in (("NORMAL", count - count // 2), ("PNEUMONIA", count // 2)):
            end = running + class_count
            while running < end:
                numbers[name] += 1
                number = numbers[name]
                patient = 2 * number + (name == "PNEUMONIA")
                draws = Draws(seed, "cell-patient", patient)
                chance, viral = draws.between(0, 1), draws.chance(0.4)
                for image in range(1, 1 + min(end - running, 1 + (chance > 0.7) + (chance > 0.9))):
                    running += 1
                    if name == "NORMAL":
                        yield f"{split}/NORMAL/IM-{number:04d}-{image:04d}.jpeg", patient, image, None
                    else:
                        pathogen = "virus" if viral else "bacteria"
                        yield f"{split}/PNEUMONIA/person{number}_{pathogen}_{running}.jpeg", patient, image, viral


def _write_cell_image(job: tuple[Path, int, int, bool | None, int, int]) -> None:
    path, patient, image, viral, seed, size_px = job
    anatomy = draw_anatomy(seed, "cell", patient)
    opacities = draw_opacities(seed, "cell", patient, 0, viral) if viral is not None else ()
    draws = Draws(seed, "cell-image-kind", patient, image)
    projection = "AP" if draws.chance(0.5) else "PA"
    lines = 1 + int(draws.between(0, 4)) if draws.chance(0.55 if projection == "AP" else 0.1) else 0
    _save(radiograph(seed, "cell", patient, image, anatomy, opacities, projection, lines, size_px), path)
