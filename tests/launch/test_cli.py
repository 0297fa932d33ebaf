import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import COMMANDS, main


def sternum(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {command} " in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: sternum {command}" in text
    assert "examples:" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pack"], "unknown command 'pack'; the commands are shard, verify"),
        (["shard", "cell", "--root=/nowhere", "--out=/tmp/never", "--jpg=3"], "unknown key 'jpg'"),
        (["shard", "cell", "--root=/nowhere", "--out=/tmp/never", "--jpeg_quality=300"], "jpeg_quality=300 must be"),
        (["shard", "cell", "--root=/nowhere", "--out=/tmp/never"], "/nowhere"),
        (["verify", "/nowhere"], "/nowhere"),
        (["pretrain", "--run_folder=/tmp/never", "--data.shards=[/nowhere]"], "/nowhere"),
        (["pretrain", "--run_folder=/tmp/never", "--data.shards=[a]", "--data.lanes=12"], "data.lanes=12 must divide"),
        (["pretrain", "--run_folder=/tmp/never", "--data.shards=[a]", "--loss.temperature=0"], "must be positive"),
        (["probe", "--run_folder=/nowhere", "--data.shards=[a]"], "/nowhere"),
        (["report", "/nowhere"], "/nowhere"),
        (["pretrain", "--run_folder=/tmp/never", "--data.shards=[a]", f"--seed={2**64}"], "seed="),
        (["pretrain", "--config=/bin/true", "--run_folder=/tmp/never"], "UTF-8"),
        (["probe", "--run_folder=a", "--data.shards=[a]", "--checkpoints=[]", "--controls=false"], "nothing to probe"),
    ],
)
def test_a_mistake_ends_in_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("sternum: error: ")
    assert written.err.count("\n") == 1
    assert message in written.err
    assert not Path("/tmp/never").exists()


def test_the_process_itself_prints_no_traceback() -> None:
    done = sternum("verify", "/nowhere")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_packing_does_not_wait_for_torch() -> None:
    program = "import sys; sys.argv = ['sternum', 'shard']; import launch.shard; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
