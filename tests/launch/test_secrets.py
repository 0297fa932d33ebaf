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
    "pretraining shards": ["pretrain", "--run_folder=run", "--data.shards=[{url}]"],
    "shards without brackets": ["pretrain", "--run_folder=run", "--data.shards={url}"],
    "second shards": ["pretrain", "--run_folder=run", "--data.shards=[shards,{url}]"],
    "mirror": ["pretrain", "--run_folder=run", "--data.shards=[shards]", "--checkpoints.mirror={url}"],
    "misspelled key": ["pretrain", "--run_folder=run", "--data.shards=[shards]", "--checkpoints.miror={url}"],
    "destination": ["shard", "cell", "--root=raw", "--out={url}"],
    "probe shards": ["probe", "--run_folder=run", "--data.shards=[{url}]"],
    "Ray cluster": ["probe", "--run_folder=run", "--data.shards=[shards]", "--address={url}"],
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
