"""Tests of the commands as processes whose standard streams, encoding or disks are not the usual ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

STERNUM = f"{sys.executable} -m launch"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which $STERNUM is the command."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        env=os.environ | {"STERNUM": STERNUM} | environment,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("$STERNUM --version >&-", 0, ""),
        ("$STERNUM --version <&- >&- 2>&-", 0, ""),
        ("$STERNUM verify /nowhere >&-", 2, "/nowhere has no manifest.json"),
        ("$STERNUM verify /nowhere 2>&-", 2, ""),
        ("$STERNUM verify --help | true", 141, ""),
        ("$STERNUM --version > /dev/full", 2, "the output cannot be written: No space left on device"),
        ("$STERNUM verify $'caf\\xe9'", 2, "must be UTF-8 text without zero bytes"),
        ("LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0 $STERNUM verify $'caf\\xc3\\xa9'", 2, "UTF-8"),
        ("LC_ALL=C $STERNUM verify $'caf\\xc3\\xa9'", 2, "has no manifest.json"),
    ],
)
def test_no_stream_or_encoding_ends_in_a_traceback(line: str, code: int, error: str) -> None:
    done = shell(line)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == bool(error)
    assert error in done.stderr


def test_a_file_that_is_opened_next_does_not_become_a_closed_stream(tmp_path: Path) -> None:
    program = (
        "from infra.streams import open_standard_streams as o; o(); print(open('x', 'w').fileno(), file=open('n', 'w'))"
    )
    done = subprocess.run(
        ["bash", "-c", f'exec "{sys.executable}" -c "{program}" <&- >&- 2>&-'],
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert int((tmp_path / "n").read_text()) > 2
