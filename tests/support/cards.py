"""The Python of a model card, run where Sternum is not installed."""

import re
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# Without `site`, Python finds its standard library alone: no project in the working folder, in PYTHONPATH, or in a
# .pth file of site-packages. So the folder of the installed packages is added, whose own .pth files are not read.
_ISOLATED: Final = (sys.executable, "-I", "-S", "-W", "ignore", "-c")
PATHS: Final = '["radiograph.jpeg"]'  # the files that a card reads
_WITHOUT_STERNUM: Final = """
import sys
sys.path += {paths}
for name in ("ssl_core", "evaluation", "sharding", "infra", "launch"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{{name}} is installed here")
import torch
torch.set_num_threads(1)
"""


def python_of(card: str) -> dict[str, str]:
    """Return the Python blocks of a card by their headings."""
    blocks = re.findall(r"^### ([^\n]+)\n(?:(?!^#)[^\n]*\n)*?```python\n(.*?)```", card, flags=re.DOTALL | re.MULTILINE)
    return dict(blocks)


def run_without_sternum(folder: Path, blocks: Sequence[str]) -> None:
    """Run Python in a process with a folder as its working folder and without Sternum; fail if that process does."""
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    others = {path for path in sys.path if Path(path, "onnxruntime").is_dir() or Path(path, "torch").is_dir()}
    script = "\n".join([_WITHOUT_STERNUM.format(paths=sorted(packages | others)), *blocks])
    ended = subprocess.run([*_ISOLATED, script], cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]


def checked(block: str) -> str:
    """Return Python that sets `features`, and compares them with those in `expected.npy`."""
    comparison = "np.testing.assert_allclose(features, np.load('expected.npy'), rtol=1e-4, atol=1e-4)"
    return f"{block}\n{comparison}\ndel features\n"
