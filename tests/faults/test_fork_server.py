from pathlib import Path

import pytest

from tests.support.fork_server import fork_context

# The processes call only the standard library, so that the call itself imports nothing.


def test_a_process_starts_with_everything_imported() -> None:
    with fork_context().Pool(1) as pool:
        imported = pool.apply(eval, ("list(__import__('sys').modules)",))
    assert {"torch", "deepspeed", "ssl_core.pretraining.train"} <= set(imported)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_the_server_runs_no_thread_that_its_processes_would_miss() -> None:
    with fork_context().Pool(1) as pool:
        server = pool.apply(eval, ("__import__('os').getppid()",))
        assert len(list(Path(f"/proc/{server}/task").iterdir())) == 1
