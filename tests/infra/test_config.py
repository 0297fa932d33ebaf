import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from infra.config import load, parse, save
from infra.errors import UserError, require


@dataclass(frozen=True)
class Inner:
    """The inner part.

    Args:
        lanes: number of lanes
        folders: where
    """

    folders: list[Path]
    lanes: int = 8

    def __post_init__(self) -> None:
        require(self.lanes > 0, f"data.lanes={self.lanes} must be positive; use 8")


@dataclass(frozen=True)
class Outer:
    """The whole.

    Args:
        name: of it
        data: a part
        span: two numbers
    """

    name: str
    data: Inner
    span: tuple[float, float] = field(default=(0.0, 1.0))


def build(*arguments: str) -> Outer:
    return parse(
        Outer, arguments, command="test", description="Try it.", examples=["sternum test a"], positional=("name",)
    )


def test_options_on_the_command_line_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: {folders: [a, b], lanes: 4}\nspan: [0.5, 2]\n")
    config = build("x", f"--config={path}", "--data.lanes=16")
    assert config == Outer("x", Inner([Path("a"), Path("b")], 16), (0.5, 2.0))


def test_a_saved_configuration_is_read_back_equal(tmp_path: Path) -> None:
    config = Outer("x", Inner([Path("/a b/c")], 3), (0.25, 0.75))
    save(config, tmp_path / "c.yaml")
    assert load(Outer, tmp_path / "c.yaml") == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--data.folders=[a]", "--data.lanez=3"], r"unknown key 'data.lanez'.*did you mean 'data.lanes'\?"),
        (["x", "--data.folders=[a]", "--data.lanes=q"], r"data\.lanes: .*Got value: q.*--help"),
        (["x", "--data.folders=[a]", "--data.lanes=0"], r"data\.lanes=0 must be positive; use 8"),
        (["x", "--data.lanes=1"], r"data\.folders"),
        (["--data.folders=[a]"], r"name"),
        (["x", "--config=/does/not/exist.yaml"], r"/does/not/exist\.yaml"),
    ],
)
def test_a_mistake_becomes_one_line_that_names_it(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as raised:
        build(*arguments)
    assert "\n" not in str(raised.value)
    assert re.search(message, str(raised.value)), raised.value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {folders: [a], lane: 3}", r"unknown key 'lane'.*did you mean 'data\.lanes'\?"),
        ("data: {folders: [a", r"(?i)parsing"),
        ("data: {folders: [a]}\nextra: 1", r"unknown key 'extra'|extra"),
    ],
)
def test_a_mistake_in_the_file_becomes_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        build("x", f"--config={tmp_path / 'c.yaml'}")
    assert "\n" not in str(raised.value)


def test_help_shows_the_options_and_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        build("--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "number of lanes" in text
    assert "  sternum test a" in text
