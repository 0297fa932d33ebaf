"""Which of the kept probes of a run the user means."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from evaluation.results.kept_probes import KeptProbe
from evaluation.results.presets import PresetName
from evaluation.results.task_file import near
from infra.errors import UserError, require


def split_words(text: str, what: str) -> tuple[Path, str]:
    """Split RUN:TASK at the first colon behind a folder, since both may contain one.

    Args:
        text: the words of the user
        what: the option, for messages

    Returns:
        The run folder, and the name of the task, empty if there is none.

    Raises:
        UserError: if no part of the text is a folder
    """
    for position, character in enumerate(f"{text}:"):
        run = Path(text[:position]).expanduser()
        if character == ":" and position and run.is_dir():
            return run, text[position + 1 :].strip()
    raise UserError(f"{what}={text} must be RUN:TASK, such as runs/first:cell, with the folder of a run")


def choose(
    probes: Sequence[KeptProbe], task: str, what: str, preset: PresetName | None, features: str | None
) -> list[KeptProbe]:
    """Return the probes of a task, one for each of its questions.

    Args:
        probes: the kept probes of a run
        task: name of a question or a task in the tables, or of the task alone
        what: the option with its value, for messages
        preset: name of the preset; None for rigorous, if the run was probed by it
        features: name of a row of the tables; None for the last checkpoint

    Raises:
        UserError: if there are no such probes, or the words mean several
    """
    return _of_features(_of_preset(_of_task(probes, task, what), preset), features)


def _of_task(probes: Sequence[KeptProbe], task: str, what: str) -> list[KeptProbe]:
    for found in (
        [probe for probe in probes if probe.dataset == task],
        [probe for probe in probes if _label(probe) == task],
        [probe for probe in probes if probe.task == task],
    ):
        labels = _labels(found)
        require(len(labels) < 2, f"{what} is a task of several sets; name {_either(labels)}")
        if found:
            return found
    known = _labels(probes)
    require(bool(task), f"{what} must name a task too, behind a colon: {_either(known)}")
    raise UserError(f"{what}: no probe of {task!r} is kept{near(task, known)}; name {_either(known)}")


def _label(probe: KeptProbe) -> str:
    """Return the name of the task in the tables, without a question."""
    return probe.dataset.removesuffix(f": {probe.question}") if probe.question else probe.dataset


def _labels(probes: Sequence[KeptProbe]) -> list[str]:
    return list(dict.fromkeys(map(_label, probes)))


def _of_preset(probes: Sequence[KeptProbe], preset: PresetName | None) -> list[KeptProbe]:
    present = list(dict.fromkeys(probe.preset for probe in probes))
    chosen = preset or ("rigorous" if "rigorous" in present else present[0])
    require(chosen in present, f"preset={preset} was not probed; take {_either(present)}")
    return [probe for probe in probes if probe.preset == chosen]


def _of_features(probes: Sequence[KeptProbe], features: str | None) -> list[KeptProbe]:
    names = list(dict.fromkeys(probe.features for probe in probes))
    checkpoints = [probe for probe in probes if probe.kind == "checkpoint"]
    last = max(checkpoints, key=lambda probe: probe.step or 0).features if checkpoints else None
    chosen = features or last or (names[0] if len(names) == 1 else "")
    require(
        chosen in names,
        f"features={features} must name a row whose probe is kept{near(chosen, names)}; name {_either(names)}",
    )
    return [probe for probe in probes if probe.features == chosen]


def _either(names: Iterable[str]) -> str:
    return " or ".join(map(repr, names))
