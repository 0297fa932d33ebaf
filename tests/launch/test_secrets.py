"""A test that no command shows or writes the credentials of a URL."""

from itertools import product
from pathlib import Path

import pytest

from launch.cli import main

SECRET = "X7SECRETX"
SCHEMES = ("http", "https", "s3", "gs", "file", "memory", "hdfs")  # those that work and two that do not
FORMS = {
    "user": "{scheme}://{secret}@server/x",
    "password": "{scheme}://anna:{secret}@server/x",
    "query": "{scheme}://server/x?token={secret}",
    "fragment": "{scheme}://server/x#{secret}",
    "slash in the password": "{scheme}://anna:a/{secret}@server/x",
    "question mark in the password": "{scheme}://anna:a?{secret}@server/x",
    "at sign in the password": "{scheme}://anna:a@{secret}@server/x",
    "one slash": "{scheme}:/anna:{secret}@server/x",
    "no slash": "{scheme}:anna:{secret}@server/x",
}
COMMANDS = {
    "pretraining shards": ["pretrain", "run", "--data.shards=[{url}]"],
    "shards without brackets": ["pretrain", "run", "--data.shards={url}"],
    "second shards": ["pretrain", "run", "--data.shards=[shards,{url}]"],
    "mirror": ["pretrain", "run", "--data.shards=[shards]", "--checkpoints.mirror={url}"],
    "misspelled key": ["pretrain", "run", "--data.shards=[shards]", "--checkpoints.miror={url}"],
    "destination": ["shard", "cell", "--root=raw", "--out={url}"],
    "probe shards": ["probe", "run", "--data.shards=[{url}]"],
    "Ray cluster": ["probe", "run", "--data.shards=[shards]", "--address={url}"],
    "job server": ["submit", "ray", "--address={url}", "--dry_run=true", "--", "sternum", "probe"],
    "audited shards": ["audit", "{url}"],
    "verified shards": ["verify", "{url}"],
    "viewed shards": ["views", "{url}"],
}


def written(folder: Path) -> list[Path]:
    """Return the files and folders below a folder that hold the secret, in their content or their name."""
    return [
        path
        for path in folder.rglob("*")
        if SECRET in str(path) or (path.is_file() and SECRET.encode() in path.read_bytes())
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_message_and_no_file_holds_the_credentials_of_a_url(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    for scheme, form in product(SCHEMES, FORMS):
        if form == "no slash" and scheme in ("memory", "hdfs"):
            continue  # nothing shows that this is a URL
        url = FORMS[form].format(scheme=scheme, secret=SECRET)
        code = main([word.format(url=url) for word in COMMANDS[command]])
        output = "".join(capfd.readouterr())
        assert code == 2, (scheme, form, output)
        assert len(output.splitlines()) == 1, (scheme, form, output)
        assert SECRET not in output, (scheme, form)
        assert written(tmp_path) == []


FILES = {
    "pretraining shards": (["pretrain", "run"], "data: {{shards: ['{url}']}}"),
    "mirror": (["pretrain", "run"], "data: {{shards: [shards]}}\ncheckpoints: {{mirror: '{url}'}}"),
    "cache": (["pretrain", "run"], "data: {{shards: [shards], fetch: {{cache_folder: '{url}'}}}}"),
    "misspelled key": (["pretrain", "run"], "data: {{shard: ['{url}']}}"),
    "wrong type": (["pretrain", "run"], "data: {{shards: {{a: '{url}'}}}}"),
    "number": (["pretrain", "run"], "seed: '{url}'\ndata: {{shards: [shards]}}"),
    "not YAML": (["pretrain", "run"], "data: {{shards: ['{url}']"),
    "destination": (["shard", "cell"], "root: raw\nout: '{url}'"),
    "probe shards": (["probe", "run"], "data: {{shards: ['{url}']}}"),
    "Ray cluster": (["probe", "run"], "data: {{shards: [shards]}}\naddress: '{url}'"),
    "viewed shards": (["views"], "shards: ['{url}']"),
}


@pytest.mark.parametrize("name", FILES)
def test_no_message_and_no_file_holds_the_credentials_of_a_url_in_a_configuration(
    name: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("HOME", "TMPDIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    words, text = FILES[name]
    config = tmp_path_factory.mktemp("elsewhere") / "config.yaml"
    for form in FORMS.values():
        config.write_text(text.format(url=form.format(scheme="https", secret=SECRET)))
        assert main([*words, f"--config={config}"]) == 2
        output = "".join(capfd.readouterr())
        assert len(output.splitlines()) == 1, output
        assert SECRET not in output
        assert written(tmp_path) == []


@pytest.mark.parametrize("command", [["report", "run"], ["probe", "run", "--data.shards=[shards]"], ["table", "run"]])
@pytest.mark.parametrize("key", ["shards", "mirror"])
def test_credentials_in_the_configuration_of_a_run_are_neither_used_nor_repeated(
    command: list[str], key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"https://anna:{SECRET}@127.0.0.1:1/x?token={SECRET}"
    shards, mirror = (url, "s3://bucket/run") if key == "shards" else ("shards", url)
    (tmp_path / "run").mkdir()
    content = f"run_folder: run\ndata: {{shards: ['{shards}']}}\ncheckpoints: {{mirror: '{mirror}'}}\n"
    (tmp_path / "run" / "config.yaml").write_text(content)
    assert main(command) == 2
    output = "".join(capfd.readouterr())
    assert len(output.splitlines()) == 1, output
    assert SECRET not in output
    assert written(tmp_path) == [tmp_path / "run" / "config.yaml"]
