"""A program that imports Ray before a local one is started, in a process of its own: a process imports Ray once."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
import ray
from infra.errors import UserError
from infra.parallel.ray_session import ray_session

try:
    with ray_session(cores=1):
        pass
except UserError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.mark.slow
def test_a_program_that_imported_ray_too_early_to_close_it_to_others_is_refused() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=250)
    assert ended.returncode == 1
    assert ended.stderr.startswith("refused: this program imported Ray before Sternum started it, so Ray would")
