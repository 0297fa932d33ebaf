"""Tests of what is shown of URLs."""

from pathlib import Path

import pytest

from infra.errors import UserError
from infra.urls import require_no_credentials, scheme_of, scrub, shown


def test_scheme_is_that_of_a_url_only() -> None:
    assert scheme_of("S3://bucket/x") == "s3"
    assert [scheme_of(path) for path in ("shards/a", "./a:b", Path("s3://bucket/x"), "C:\\shards")] == [None] * 4


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://anna:secret@server:8080/a/b/?token=secret#secret", "https://server:8080/a/b"),
        ("https://server/a@b", "https://server/a@b"),
        ("https://[::1]:8080/a/", "https://[::1]:8080/a"),
        ("s3://secret@bucket/a", "s3://bucket/a"),
        ("file:///a/b", "file:///a/b"),
        # A misplaced character hides where the password ends.
        ("https://anna:sec/ret@server/a", "https://..."),
        ("https://anna:sec?ret@server/a", "https://..."),
        ("https://anna:a@sec/ret@server/a", "https://..."),
        ("s3://anna:secret/a", "s3://..."),
        ("s3:/anna:secret@bucket/a", "s3:..."),
    ],
)
def test_shown_url_holds_no_credentials(url: str, expected: str) -> None:
    assert shown(url) == expected


def test_paths_are_shown_as_they_are() -> None:
    assert shown(Path("a?b/")) == "a?b"
    assert shown("./a:b@c#d") == "./a:b@c#d"
    require_no_credentials("./a:b@c#d")


@pytest.mark.parametrize(
    "url", ["https://secret@server/a", "gs://bucket/a?secret", "s3://b/a#secret", "s3:/b:secret@c"]
)
def test_credentials_are_refused_and_not_shown(url: str) -> None:
    with pytest.raises(
        UserError, match=r"^data\.shards=.* must not contain a user, a password, a query or a fragment; "
    ) as error:
        require_no_credentials(url, "data.shards")
    assert "secret" not in str(error.value)


def test_scrub_removes_credentials_from_a_line() -> None:
    assert scrub("no 'https://anna:sec ret,@server/a?token=secret', but b@c") == "no 'https://c"
    assert (
        scrub("no answer of https://server:80/a?secret&x=1#y; try again")
        == "no answer of https://server:80/a try again"
    )
    assert scrub("https:/server/a?secret is missing") == "https:/server/a is missing"
    assert scrub("key=s3:/anna:secret@bucket") == "key=s3://bucket"
    assert scrub("HTTPPool(host='h'): no answer with url: /a?X-Amz-Signature=secret (x)") == (
        "HTTPPool(host='h'): no answer with url: /a (x)"
    )
    assert scrub("why? ask anna@server") == "why? ask anna@server"
