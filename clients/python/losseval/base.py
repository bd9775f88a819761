"""What both clients are made of, but for I/O: configuration, and the httpx client of this process."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeVar

from . import __version__
from .comparison import compare
from .exchange import Config, Reply
from .retry import RetryBudget

if TYPE_CHECKING:
    import httpx
    from typing_extensions import Self, Unpack

Http = TypeVar("Http")
_KEEPALIVE_S = 71.0
"""Four seconds less than the service keeps an idle connection, so that it isn't the one to close first."""


class ClientOptions(TypedDict, total=False):
    """What `with_options` takes; `is_patient`: retries are bounded by time alone, as suits work in bulk."""

    api_key: str | None
    timeout: float
    max_attempts: int
    wire: Literal["binary", "json"]
    is_patient: bool


class Pool(Generic[Http]):
    """The httpx client of this process and its retry budget, made when needed: a fork or a pickle gets its own."""

    def __init__(self, open_http: Callable[[], Http], given: Http | None) -> None:
        self._open, self._given = open_http, given
        self._by_process: dict[int, tuple[Http, RetryBudget]] = {}
        self._is_closed = False

    def get(self) -> tuple[Http, RetryBudget]:
        """Returns both. RuntimeError: closed."""
        if self._is_closed:
            raise RuntimeError("the client is closed")
        process = os.getpid()
        if process not in self._by_process:
            self._by_process.setdefault(process, (self._given or self._open(), RetryBudget()))
        return self._by_process[process]

    def close(self) -> list[Http]:
        """Ends it, and returns what is to be closed: nothing that was given."""
        self._is_closed = True
        opened = self._by_process.pop(os.getpid(), None)
        return [opened[0]] if opened and self._given is None else []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_by_process": {}}


class BaseClient(Generic[Http]):
    """A client of the service at `base_url`; connects to nothing yet.

    Args:
        base_url: By default LOSSEVAL_URL, else http://127.0.0.1:8000.
        api_key: By default LOSSEVAL_API_KEY, else none.
        timeout: Seconds a call may take, retries included; the service is told how many are left.
        max_attempts: Requests a call may take if connections fail or the answer is 429, 502, 503 or 504.
        wire: `json` for reading along; the numbers are the same.
        http_client: An httpx client of your own; it stays open, and can't go through a fork or a pickle.
        transport: An httpx transport of your own.
    """

    compare = staticmethod(compare)

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        max_attempts: int = 3,
        wire: Literal["binary", "json"] = "binary",
        http_client: Http | None = None,
        transport: Any = None,  # noqa: ANN401 - httpx.BaseTransport or AsyncBaseTransport
    ) -> None:
        url = base_url or os.environ.get("LOSSEVAL_URL") or "http://127.0.0.1:8000"
        self._config = Config(url, api_key or os.environ.get("LOSSEVAL_API_KEY"), timeout, max_attempts, wire)
        self._pool: Pool[Http] = Pool(functools.partial(self._open, transport), http_client)

    @classmethod
    def local(cls, **settings: object) -> Self:
        """Returns a client of the service in this process, without a socket; it starts with the first call.

        Args:
            settings: The service's own, e.g. ``device="cpu"``.

        Raises:
            ImportError: losseval-service is not installed.
        """
        from .local import LocalTransport  # noqa: PLC0415 - imports httpx

        return cls("http://localhost", transport=LocalTransport(settings))

    def with_options(self, **options: Unpack[ClientOptions]) -> Self:
        """Returns a client that differs in these options and shares everything else, its connections too."""
        other = copy.copy(self)
        other._config = dataclasses.replace(self._config, **options)
        return other

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._config.base_url!r})"

    @staticmethod
    def _open(transport: Any) -> Http:  # noqa: ANN401
        raise NotImplementedError


def http_options() -> dict[str, Any]:
    """Returns how an httpx client of ours is made."""
    import httpx  # noqa: PLC0415 - takes longer to import than all the rest

    limits = httpx.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=_KEEPALIVE_S)
    headers = {"User-Agent": f"losseval-python/{__version__}", "Accept-Encoding": "identity"}
    return {"limits": limits, "headers": headers}


@functools.lru_cache(maxsize=256)
def parse_url(url: str) -> httpx.URL:
    """Parses a URL, which costs more than a small evaluation's arrays."""
    import httpx  # noqa: PLC0415

    return httpx.URL(url)


def reply_of(response: httpx.Response, body: bytearray) -> Reply:
    """Returns what the core reads of a response; httpx's own headers cost a microsecond a look."""
    headers = {name.lower().decode(): value.decode("latin-1") for name, value in response.headers.raw}
    return Reply(response.status_code, headers, body)
