"""A fork server that has imported the training code, so that test processes start at once."""

import os
import sys
from functools import cache
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from unittest import mock


@cache
def fork_context() -> ForkServerContext:
    """Return the context that forks processes off the server; the first call starts the server.

    Every process has the environment of that first call, without a GPU, and nothing that a test imported or patched.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.support.fork_server_imports"])
    # The server does not inherit this process's path, and silently skips modules that it does not find.
    environment = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",  # DeepSpeed imports pandas, and that pyarrow
    }
    with mock.patch.dict(os.environ, environment):
        forkserver.ensure_running()
    return context
