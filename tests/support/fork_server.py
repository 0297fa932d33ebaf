"""A fork server that has imported what training takes, so that a process of the tests starts at once."""

import os
import sys
from functools import cache
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from unittest import mock


@cache
def fork_context() -> ForkServerContext:
    """Return where processes are forked off; the first call starts the server.

    Every process has the environment of that call, without a GPU, and nothing that a test has imported or patched.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.support.fork_server_imports"])
    # The server knows nothing of this process's path, and passes over in silence what it does not find on its own.
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    with mock.patch.dict(os.environ, own):
        forkserver.ensure_running()
    return context
