"""Tests of all options and subjects of all commands that are paths: they expand `~` and refuse what is no path."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from launch.cli import COMMANDS, main

# Words that a command needs before it looks at another option, and its subject if that is a path.
REQUIRED = {
    "shard": ["cell", "--root=raw", "--out=shards"],
    "pretrain": ["--data.shards=[shards]"],
    "probe": ["--data.shards=[shards]"],
    "embed": ["--backbone=run", "--out=features.csv"],
    "predict": ["--probe=run:cell"],
    "submit": ["ray"],
    "export": ["--out=out"],
}
TAKES_URLS = {"views", "embed", "predict"}
SUBJECTS = {
    "verify": "shards",
    "audit": "shards",
    "views": "shards",
    "embed": "source",
    "predict": "images",
    "pretrain": "run_folder",
    "supervise": "run_folder",
    "probe": "run_folder",
    "table": "run_folders",
    "report": "run_folders",
    "export": "run_folder",
}


class PathOption(NamedTuple):
    """An option that holds paths, with its form in the help, such as `[PATH|URL,...]`."""

    command: str
    key: str
    form: str

    def words(self, path: str) -> list[str]:
        """Return the words of the command line that give a path to the option."""
        required = [word for word in REQUIRED.get(self.command, []) if not word.startswith(f"--{self.key}=")]
        if self.key == SUBJECTS.get(self.command):
            return [self.command, path, *required]
        subject = ["x"] if self.command in SUBJECTS else []
        value = f"[{path}]" if self.form.startswith("[") else path
        return [self.command, *subject, *required, f"--{self.key}={value}"]


def path_options(capsys: pytest.CaptureFixture[str]) -> list[PathOption]:
    """Return all of them, as the help of each command shows them."""
    found = []
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        found += [PathOption(command, *match) for match in re.findall(r"^ +--(\S+) (\[?PATH\S*)", text, re.MULTILINE)]
        if command in SUBJECTS:
            found.append(PathOption(command, SUBJECTS[command], "PATH|URL" if command in TAKES_URLS else "PATH"))
    return found


def test_every_path_option_refuses_a_url_unless_it_takes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = path_options(capsys)
    assert {("pretrain", "run_folder"), ("shard", "root"), ("table", "out")} <= {option[:2] for option in options}
    for option in options:
        for url in ("s3://bucket/x", "s3:/bucket/x", "ftp://host/x", "file:///x"):
            if "URL" not in option.form:
                assert main(option.words(url)) == 2, option
                message = capsys.readouterr().err
                assert re.search(rf"error: {option.key}=\[?{url}\]? must be a path on this machine, not a URL", message)
    assert list(tmp_path.iterdir()) == []


def test_every_path_option_refuses_nothing_and_names_that_no_file_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for option in path_options(capsys):
        for text in ("~nobody-here/x", "a\udcffb"):
            assert main(option.words(text)) == 2, option
            assert capsys.readouterr().err.count("\n") == 1
        if not option.form.startswith("["):
            assert main(option.words("")) == 2, option
            assert "empty; check the variable that the shell put there" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_path_option_expands_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for option in path_options(capsys):
        with pytest.raises(SystemExit, match="0"):
            main([*option.words("~/x"), "--print_config"])
        value = yaml.safe_load(capsys.readouterr().out)
        for name in option.key.split("."):
            value = value[name]
        assert value in (f"{tmp_path}/x", [f"{tmp_path}/x"]), option


def test_a_default_in_the_home_folder_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It matters only if the path is used: a saved configuration is also read where the home folder is unknown."""
    (tmp_path / "config.yaml").write_text("data: {shards: [x], fetch: {cache_folder: ~/.cache/sternum}}\n")
    with pytest.raises(SystemExit, match="0"):
        main(["pretrain", "run", f"--config={tmp_path / 'config.yaml'}", "--print_config"])
    assert "cache_folder: ~/.cache/sternum\n" in capsys.readouterr().out
