import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from infra.configuration.config import load, parse, save
from infra.configuration.options import require_positive
from infra.errors import UserError


@dataclass(frozen=True)
class Inner:
    """The data.

    Args:
        folders: folders of shards
        lanes: number of lanes
    """

    folders: list[Path]
    lanes: int = 8

    def __post_init__(self) -> None:
        require_positive(self, "lanes", "use 8")


@dataclass(frozen=True)
class Outer:
    """The run.

    Args:
        name: name of the run
        data: which samples
        span: smallest and largest value
        seed: seed of all draws
        mode: what to do
        steps: number of steps
        watch: whether to watch
    """

    name: str
    data: Inner
    span: tuple[float, float] = field(default=(0.0, 1.0))
    seed: int = 0
    mode: Literal["fast", "exact"] | list[int] = "fast"
    steps: int | None = None
    watch: bool = False


def build(*arguments: str, configs: dict[str, Path] | None = None, ignored: tuple[str, ...] = ()) -> Outer:
    return parse(
        Outer,
        arguments,
        command="test",
        description="Try it.",
        examples=["sternum test a"],
        subject="name",
        ignored=ignored,
        configs=configs,
    )


def written(folder: Path, text: str, name: str = "c.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("is_first", [True, False])
def test_words_on_the_command_line_override_the_file_in_any_order(tmp_path: Path, is_first: bool) -> None:
    path = written(tmp_path, "name: of the file\ndata: {folders: [a, b], lanes: 4}\nspan: [1e-3, 2]\n")
    config = [f"--config={path}"]
    words = ["x", "--data.lanes=16"]
    built = build(*config, *words) if is_first else build(*words, *config)
    assert built == Outer("x", Inner([Path("a"), Path("b")], 16), (0.001, 2.0))


def test_a_subject_in_the_file_need_not_be_typed(tmp_path: Path) -> None:
    path = written(tmp_path, "name: of the file\ndata: {folders: [a]}\n")
    assert build(f"--config={path}") == Outer("of the file", Inner([Path("a")]))


def test_values_may_be_words_of_their_own() -> None:
    assert build("x", "--data.folders", "[a]", "--seed", "-3").seed == -3


def test_a_saved_configuration_is_read_back_equal(tmp_path: Path) -> None:
    config = Outer("x", Inner([Path("/a b/c")], 3), (0.25, 0.75), mode=[1, 2], steps=7, watch=True)
    save(config, tmp_path / "c.yaml")
    assert load(Outer, tmp_path / "c.yaml", command="test") == config


def test_a_file_that_cannot_be_loaded_is_named_with_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"c\.yaml does not exist; name a folder that `sternum demo` wrote"):
        load(Outer, tmp_path / "c.yaml", command="demo")
    path = written(tmp_path, "seeds: 1")
    with pytest.raises(UserError, match=r"'seeds' in .*c\.yaml; did you mean 'seed'\? .*: sternum demo --help$"):
        load(Outer, path, command="demo")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--data.folders=[a]", "--data.lanez=3"], "unknown key 'data.lanez'; did you mean 'data.lanes'?"),
        (["x", "--data.folders=[a]", "--lanes=3"], "unknown key 'lanes'; did you mean 'data.lanes'?"),
        (["x", "--data.folders=[a]", "--sead=3"], "unknown key 'sead'; did you mean 'seed'?"),
        (["x", "--data.folders=[a]", "--zzz=3"], "unknown key 'zzz';"),
        (["x", "--data.folders=[a]", "-z"], "unknown key 'z';"),
        (["x", "--data={folders: [a]}"], "'data' is a section; set its keys one at a time, such as --data.folders;"),
        (["--data.folders=[a]", "--name=x"], "'name' takes no dashes; type only its value: sternum test NAME;"),
        (["x", "--data.folders=[a]", "--data.lanes=q"], "data.lanes=q must be a whole number;"),
        (["x", "--data.folders=[a]", "--data.lanes=2.5"], "data.lanes=2.5 must be a whole number;"),
        (["x", "--data.folders=a"], "data.folders=a must be a list of paths, such as [a,b];"),
        (["x", "--data.folders=[a]", "--span=3"], "span=3 must be 2 numbers, such as [0.5,0.5];"),
        (["x", "--data.folders=[a]", "--mode=slow"], "mode=slow must be fast, exact or a list of whole numbers,"),
        (["x", "--data.folders=[a]", "--steps=q"], "steps=q must be a whole number or null;"),
        (["x", "--data.folders=[a]", "--watch=maybe"], "watch=maybe must be true or false;"),
        (["x", "--data.folders=[a]", "--watch"], "watch needs a value, such as --watch=true;"),
        (["x", "--data.folders=[a]", "--data.lanes"], "data.lanes needs a value, such as --data.lanes=1;"),
        (["x", "--data.folders=[a]", "--data.lanes=0"], "data.lanes=0 must be positive; use 8"),
        (["x", "--data.lanes=1"], "data.folders is missing; add --data.folders=[a,b];"),
        (["--data.folders=[a]"], "name is missing: sternum test NAME;"),
        (["x", "y", "--data.folders=[a]"], "unexpected argument 'y'; options look like --key=value;"),
        (["", "--data.folders=[a]"], "name is empty; check the variable that the shell put there;"),
        (["x", "--data.folders=[a,s3://b/c]"], "data.folders=[a,s3://b/c] must be a path on this machine, not a URL;"),
        (["x", "--data.folders=[a]", "--", "y"], "unexpected argument '--'; options look like --key=value;"),
        (["x", "--data.folders=[]", "--data.lanes=010"], "data.lanes=010 must be a whole number;"),
        (["x", "--data.folders=[a]", "--span=[0,.inf]"], "span=[0,.inf] must be 2 numbers, such as [0.5,0.5];"),
        (["x", "--data.folders+=[a]"], "unknown key 'data.folders+'; did you mean 'data.folders'?"),
        (["x", "--config=s3://b/c.yaml"], "config=s3://b/c.yaml must be a path on this machine, not a URL"),
        (["x", "--config="], "config needs a value, such as --config=FILE;"),
        (["x", "--config=/usr"], "/usr is a folder; --config takes a YAML file, such as /usr/config.yaml"),
        (["x", "--config=/does/not/exist.yaml"], "/does/not/exist.yaml does not exist; --config takes a YAML file"),
    ],
)
def test_a_mistake_becomes_one_line_that_names_it(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as raised:
        build(*arguments)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(message)
    assert str(raised.value).endswith("sternum test --help") or not message.endswith(";")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {folders: [a], lane: 3}", r"unknown key 'data\.lane' in .*c\.yaml; did you mean 'data\.lanes'\?"),
        ("data: {folders: [a]}\nsead: 1", r"unknown key 'sead' in .*c\.yaml; did you mean 'seed'\?"),
        ("data: {folders: [a]}\nextra: 1", r"unknown key 'extra' in .*c\.yaml; all options"),
        ("data: {folders: [a], lanes: many}", r"data\.lanes=many in .*c\.yaml must be a whole number"),
        ("data: {folders: [a]}\nwatch: 3", r"watch=3 in .*c\.yaml must be true or false"),
        ("data: 3", r"data in .*c\.yaml is a section; give it keys, such as data\.folders"),
        ("data: {folders: [a", r"c\.yaml is not valid YAML in line 1: .*"),
        ("seed: 1\nseed: 2", r"c\.yaml is not valid YAML in line 2: 'seed' is there twice, first in line 1; fix it"),
        ("data: {folders: [a]}\nseed: 010", r"seed=010 in .*c\.yaml must be a whole number;"),
        ("data: {folders: [a]}\nwatch: yes", r"watch=yes in .*c\.yaml must be true or false;"),
        ("data: {folders: [a]}\nspan: [0, .nan]", r"span=\[0,\.nan\] in .*c\.yaml must be 2 numbers, such as"),
        (
            "data: {folders: [s3://b]}",
            r"data\.folders=\[s3://b\] in .*c\.yaml must be a path on this machine, not a URL",
        ),
        (
            "data: {folders: [a]}\nseed: 1\ndata: {lanes: 2}",
            r"c\.yaml is not valid YAML in line 3: 'data' is there twice",
        ),
        ("data: &x {folders: [a]}\nspan: *x", r"c\.yaml is not valid YAML in line 2: \*x is an alias"),
        ("seed: [" + "[" * 5000, r"c\.yaml is not valid YAML: it is nested too deeply; fix it"),
        (f"name: {'x' * 10**6}", r"c\.yaml has more than 1,000,000 bytes"),
        ("data: {folders: [a], lanes: 1, lanes: 2}", r"c\.yaml is not valid .*: 'lanes' is there twice"),
        ("data: {folders: [a]}\ndata.folders: [b]", r"data\.folders is in .*c\.yaml twice; keep one"),
        ("? [a, b]\n: 1", r"c\.yaml is not valid YAML in line 1: found unhashable key"),
        ("3", r"c\.yaml must contain keys with values, such as `seed: 1`"),
        ("", r"c\.yaml must contain keys with values"),
    ],
)
def test_a_mistake_in_the_file_becomes_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=message) as raised:
        build("x", f"--config={path}")
    assert "\n" not in str(raised.value)


def test_a_section_whose_keys_are_all_comments_is_empty(tmp_path: Path) -> None:
    path = written(tmp_path, "data:\n#  lanes: 3\n")
    assert build("x", f"--config={path}", "--data.folders=[a]") == Outer("x", Inner([Path("a")]))


def test_the_home_folder_is_found_in_files_lists_and_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, "data: {folders: [~/a, b]}")
    assert build("x", "--config=~/c.yaml").data.folders == [tmp_path / "a", Path("b")]
    assert build("x", "--data.folders=[~/a,~/b]").data.folders == [tmp_path / "a", tmp_path / "b"]


def test_keys_of_another_command_have_no_effect_where_they_are_ignored(tmp_path: Path) -> None:
    path = written(tmp_path, "optim: {rate: 3}\ndata: {folders: [a]}\n")
    assert build("x", f"--config={path}", "--local_rank=1", ignored=("optim", "local_rank")).name == "x"
    with pytest.raises(UserError, match="unknown key 'optim'"):
        build("x", f"--config={path}")


def test_a_name_stands_for_a_built_in_file(tmp_path: Path) -> None:
    configs = {"paper": written(tmp_path, "data: {folders: [a], lanes: 2}"), "small": tmp_path / "small.yaml"}
    assert build("x", "--config=paper", configs=configs).data.lanes == 2
    message = r"config=papr is not .*; did you mean 'paper'\? .* are paper, small; for a file, type \./papr"
    with pytest.raises(UserError, match=message):
        build("x", "--config=papr", configs=configs)


def test_the_whole_configuration_can_be_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        build("x", "--data.folders=[a]", "--seed=3", "--print_config")
    path = written(tmp_path, capsys.readouterr().out)
    assert build(f"--config={path}") == Outer("x", Inner([Path("a")]), seed=3)


def test_help_shows_the_options_and_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        build("--help", configs={"paper": Path("paper.yaml")})
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert text.startswith("usage: sternum test NAME [--config=FILE] [--KEY=VALUE ...] Try it.")
    assert "built-in one: paper" in text
    assert " data: which samples --data.folders" in text
    assert "--data.lanes N number of lanes (default: 8)" in text
    assert "--data.folders [PATH,...] folders of shards (required)" in text
    assert "--watch {true,false} whether to watch (default: false)" in text
    assert "--mode {fast,exact}|[N,...] what to do (default: fast)" in text
    assert "--span [X,X] smallest and largest value (default: [0.0,1.0])" in text
    assert "--steps N number of steps --watch" in text
    assert "<class" not in text
    assert "Path to a configuration file" not in text
    assert text.endswith("examples: sternum test a ")
