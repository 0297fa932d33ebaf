import subprocess
import sys
from pathlib import Path

import pytest

from infra.errors import RunFailed
from infra.monitoring.status import Status, write_status
from launch.builtin_configs import PRETRAIN_CONFIGS, PROBE_CONFIGS
from launch.cli import COMMANDS, main, run_command
from ssl_core.checkpoints.checkpoint import CheckpointState
from ssl_core.checkpoints.tensors import save_checkpoint


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
        (["pretrain", "/tmp/never", "--data.shards=[/nowhere]"], "/nowhere"),
        (["pretrain", "/tmp/never", "--data.shards=[a]", "--data.lanes=12"], "data.lanes=12 must divide"),
        (["pretrain", "/tmp/never", "--data.shards=[a]", "--loss.temperature=0"], "must be positive"),
        (["probe", "/nowhere", "--data.shards=[a]"], "/nowhere"),
        (["report", "/nowhere"], "/nowhere"),
        (["pretrain", "/tmp/never", "--data.shards=[a]", f"--seed={2**64}"], "seed="),
        (["pretrain", "--config=/bin/true", "/tmp/never"], "UTF-8"),
        (["probe", "a", "--data.shards=[a]", "--checkpoints=[]", "--controls=false"], "nothing to probe"),
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


HEAVY = {"torch", "torchvision", "sklearn", "scipy", "requests", "fsspec", "matplotlib", "ray", "pydicom", "PIL"}


def imported(program: str) -> set[str]:
    """Return the modules that a fresh process has imported at the end of a program."""
    script = f"import sys\n{program}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("command", ["", "verify", "audit", "table", "supervise", "report", "runs"])
def test_help_waits_for_no_heavy_library(command: str) -> None:
    words = [*command.split(), "--help"]
    program = f"from launch.cli import main\ntry:\n    main({words})\nexcept SystemExit:\n    pass"
    assert not imported(program) & HEAVY


@pytest.mark.parametrize("command", ["pretrain", "probe"])
def test_help_of_commands_with_networks_does_not_wait_for_torchvision(command: str) -> None:
    program = f"from launch.cli import main\ntry:\n    main([{command!r}, '--help'])\nexcept SystemExit:\n    pass"
    assert not imported(program) & {"torchvision", "torch._dynamo"}


def test_packing_does_not_wait_for_torch() -> None:
    assert "torch" not in imported("import launch.shard")


def test_supervising_a_run_with_a_checkpoint_never_imports_torch(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, CheckpointState(3, 0.5, "resnet18", "-", 0.5, 0.25, 1, "-", "-"), {}, {})
    (tmp_path / "last").mkdir()
    write_status(tmp_path / "last", Status("finished", 3))
    command = ["supervise", str(tmp_path), "--", "mv", f"{tmp_path}/last/status.json", str(tmp_path)]
    loaded = imported(f"from launch.cli import main\nassert main({command}) == 0")
    assert "ssl_core.checkpoints.checkpoint" in loaded
    assert not loaded & HEAVY


def test_a_built_in_configuration_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in PRETRAIN_CONFIGS:
        assert main(["pretrain", "run", f"--config={name}", "--data.shards=[/nowhere]"]) == 2
        assert "/nowhere" in capsys.readouterr().err
    for name in PROBE_CONFIGS:
        assert main(["probe", "/nowhere", f"--config={name}", "--data.shards=[a]"]) == 2
        assert "/nowhere" in capsys.readouterr().err
    assert main(["pretrain", "run", "--config=gazda", "--data.shards=[a]"]) == 2
    assert "did you mean 'gazda2021'? the built-in ones are cpu, demo, gazda2021" in capsys.readouterr().err


def test_the_configuration_of_an_older_run_is_read_and_the_typed_run_folder_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("run_folder: old\ndata: {shards: [/nowhere], lanes: 16}\nseed: 3\n")
    words = ["pretrain", str(tmp_path / "new"), f"--config={tmp_path / 'config.yaml'}", "--print_config"]
    with pytest.raises(SystemExit, match="0"):
        main(words)
    printed = capsys.readouterr().out
    assert f"run_folder: {tmp_path / 'new'}" in printed
    assert "seed: 3" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "run", "--data.shards=[a]", "--data.fetch.limit_gb=0"], "error: data.fetch.limit_gb=0"),
        (["probe", "run", "--data.shards=[a]", "--data.fetch.limit_gb=0"], "error: data.fetch.limit_gb=0"),
        (["pretrain", "run", "--data.shards=[a]", "--fetch.limit_gb=1"], "did you mean 'data.fetch.limit_gb'?"),
        (["pretrain", "run", "--data.shards=[a]", "--train.epochs=many"], "train.epochs=many must be a whole number"),
    ],
)
def test_an_error_names_the_key_as_it_must_be_typed(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_an_error_that_quotes_a_file_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(_: object) -> int:
        raise RunFailed("the run ended: \x1b[2J\x1b]0;title\x07done")

    assert run_command(fails, []) == 1
    assert capsys.readouterr().err == "sternum: error: the run ended: \\x1b[2J\\x1b]0;title\\x07done\n"
