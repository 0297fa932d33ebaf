"""The part of S3 that a reader needs, on the fault server: path-style GET, HEAD and ListObjectsV2 of one bucket."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.support.fault_server import Fault, FaultHandler

BUCKET, KEY_ID, SECRET = "radiographs", "AKIDOFTHETESTS", "a secret of the tests"

_ERRORS = {403: "AccessDenied", 404: "NoSuchKey", 429: "TooManyRequests", 500: "InternalError", 503: "SlowDown"}


class S3Handler(FaultHandler):
    """Handler that serves the folder as the bucket BUCKET, readable by the access key KEY_ID."""

    def file(self, path: str) -> Path | None:
        """Return the object at a request path, or None."""
        bucket, _, key = path.lstrip("/").partition("/")
        return super().file(key) if bucket == BUCKET and key else None

    def _answer(self) -> None:
        address = urlsplit(self.path)
        bucket, _, key = unquote(address.path).lstrip("/").partition("/")
        credential = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization") or "")
        if credential is None or credential[1] != KEY_ID:
            self._error(403, "InvalidAccessKeyId")
        elif bucket != BUCKET:
            self._error(404, "NoSuchBucket")
        elif key:
            super()._answer()
        elif "list-type" in (query := parse_qs(address.query)):
            self._list(query.get("prefix", [""])[0], query.get("delimiter", [""])[0])
        else:
            self.send_text(200, b"")

    def _refuse(self, fault: Fault) -> None:
        if fault.kind == "status":
            self._error(fault.at, _ERRORS.get(fault.at, "InternalError"), fault.value)
        else:
            super()._refuse(fault)

    def send_text(self, status: int, body: bytes, **headers: Any) -> None:
        """Send a small answer; turn a plain 404 into S3's XML."""
        if status == 404 and not body.startswith(b"<"):
            self._error(404, "NoSuchKey")
        else:
            super().send_text(status, body, **headers)

    def _error(self, status: int, code: str, retry_after: str = "") -> None:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>scripted by the test</Message></Error>"
        headers = {"Content-Type": "application/xml"} | ({"Retry-After": retry_after} if retry_after else {})
        super().send_text(status, body.encode(), **headers)

    def _list(self, prefix: str, delimiter: str) -> None:
        keys = sorted(
            str(path.relative_to(self.server.folder)) for path in self.server.folder.rglob("*") if path.is_file()
        )
        keys = [key for key in keys if key.startswith(prefix)]
        folders = {
            key[: key.index(delimiter, len(prefix)) + 1]
            for key in keys
            if delimiter and delimiter in key[len(prefix) :]
        }
        keys = [key for key in keys if not any(key.startswith(folder) for folder in folders)]
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{(self.server.folder / key).stat().st_size}</Size>"
            '<LastModified>2020-01-01T00:00:00.000Z</LastModified><ETag>"0"</ETag></Contents>'
            for key in keys
        )
        contents += "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)
        )
        body = (
            f"<?xml version='1.0'?><ListBucketResult><Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix>"
            f"<KeyCount>{len(keys)}</KeyCount><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        )
        super().send_text(200, body.encode(), **{"Content-Type": "application/xml"})
