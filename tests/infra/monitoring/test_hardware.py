import os
from pathlib import Path

import pytest
import torch

from infra.monitoring.hardware import HARDWARE_NAME, Hardware, hardware_of, read_hardware, record_hardware
from infra.ranks.processes import Ranks


def hardware(first_step: int) -> Hardware:
    return hardware_of(Ranks(world=4, local_world=2), torch.device("cpu"), first_step)


def test_hardware_describes_this_machine() -> None:
    found = hardware(7)
    assert (found.first_step, found.processes, found.machines, found.device) == (7, 4, 2, "")
    assert found.cores == len(os.sched_getaffinity(0))
    assert found.memory_bytes > 2**28
    assert found.cpu
    assert torch.__version__ in found.system


def test_each_start_has_a_line_and_one_that_is_made_again_replaces_it(tmp_path: Path) -> None:
    assert read_hardware(tmp_path) == []
    for step in (0, 10, 20, 10):
        record_hardware(tmp_path, hardware(step))
    assert [found.first_step for found in read_hardware(tmp_path)] == [0, 10]


def test_a_damaged_line_is_left_out_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_hardware(tmp_path, hardware(0))
    with (tmp_path / HARDWARE_NAME).open("ab") as file:
        file.write(b"{\n")
    assert len(read_hardware(tmp_path)) == 1
    assert "line 2 of" in capsys.readouterr().err
