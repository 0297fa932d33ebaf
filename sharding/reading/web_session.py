"""Connections to web servers: requests, without its redirections and without an answer that stays open by mistake."""

from collections.abc import Iterator
from http.client import HTTPResponse
from typing import Any, Final

import requests
import urllib3
from requests.adapters import HTTPAdapter
from typing_extensions import override
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool


class WebSession(requests.Session):
    """Follows no redirection by itself; requests would read the body of each one, however long."""

    def __init__(self) -> None:
        super().__init__()
        for scheme in _CONNECTIONS:
            self.mount(f"{scheme}://", _Adapter())

    @override
    def resolve_redirects(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        return iter(())


class _Answer(HTTPResponse):
    """Refuses lengths that contradict each other while it begins, since http.client then closes the connection.

    urllib3 refuses them later, when nobody but the garbage collector closes it.
    """

    @override
    def begin(self) -> None:
        super().begin()
        lengths = ",".join(self.headers.get_all("Content-Length", [])).split(",")
        try:
            contradict = not self.chunked and len({int(length) for length in lengths}) > 1
        except ValueError:  # urllib3 ignores what is no number
            return
        if contradict:
            raise urllib3.exceptions.InvalidHeader("several lengths")


class _Http(HTTPConnection):
    response_class = _Answer


class _Https(HTTPSConnection):
    response_class = _Answer


_CONNECTIONS: Final[dict[str, type[HTTPConnection]]] = {"http": _Http, "https": _Https}


class _Adapter(HTTPAdapter):
    @override
    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> HTTPConnectionPool:
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        assert isinstance(pool, HTTPConnectionPool), "requests has no others"
        pool.ConnectionCls = _CONNECTIONS[str(pool.scheme)]
        return pool
