"""A Ray on this machine, started in processes of their own, because a process imports Ray once."""

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SCRIPT = """
import sys
{before}
from infra.errors import UserError
from infra.ray_session import ray_session

try:
    with ray_session(cores=1):
        pass
except UserError as error:
    sys.exit(f"refused: {{error}}")
"""


def end_of(before: str) -> str:
    patient = os.environ | {"RAY_raylet_start_wait_time_s": "600"}  # a busy machine needs longer than Ray allows
    command = [sys.executable, "-c", SCRIPT.format(before=before)]
    ended = subprocess.run(command, env=patient, capture_output=True, text=True, check=False)
    assert ended.returncode in (0, 1)
    return ended.stderr


def test_a_program_that_imported_ray_too_early_to_close_it_to_others_is_refused() -> None:
    assert end_of("import ray").startswith("refused: this program imported Ray before Sternum started it, so Ray would")


def test_an_early_import_that_was_told_where_to_listen_is_none_too_early() -> None:
    assert end_of("import os; os.environ['RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER'] = '0'; import ray") == ""
