"""One call without its I/O: what an attempt sends, what its outcome means, whether and when another follows.

`exchange` is a generator: a client performs what it yields and sends back what came of it. The two clients differ in
nothing but how they do that. A call changes nothing, so repeating it is always correct.
"""

import dataclasses
import logging
import math
import random
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Generic, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

from .errors import APIConnectionError, APIResponseError, APIStatusError, APITimeoutError, LossevalError
from .results import Meta
from .wire import Part

R = TypeVar("R")
_log = logging.getLogger("losseval")
_RETRIED = frozenset({429, 502, 503, 504})
_FIRST_WAIT_S, _LONGEST_WAIT_S, _CONNECT_S = 0.25, 8.0, 5.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""For any other the service makes one of its own, in each attempt anew, and would count retries too."""
_DAY_S = 86_400.0
"""Nothing waits longer at once: sockets refuse more than 24 days."""
_PIECE_BYTES = 1 << 17
"""httpcore copies what the kernel doesn't take at once; of pieces this small it takes nearly everything."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What a client does alike in every call; `is_patient`: retries are bounded by time alone.

    Raises:
        ValueError: Something can't be used. The text shows neither a key nor a URL, which may hold a password.
    """

    base_url: str
    api_key: str | None = dataclasses.field(repr=False)
    timeout: float
    max_attempts: int
    wire: Literal["binary", "json"]
    is_patient: bool = False

    def __post_init__(self) -> None:
        if not _is_base_url(self.base_url):
            raise ValueError("base_url must be http(s)://host[:port][/path], without user information or a query")
        _check_timeout(self.timeout)
        key = (self.api_key or "").strip()  # one that was read from a file ends with a line break
        if not (key.isascii() and key.isprintable()):
            raise ValueError("api_key must be printable ASCII")
        object.__setattr__(self, "api_key", key or None)


class Reply(NamedTuple):
    """An answer, read to its end."""

    status_code: int
    headers: Mapping[str, str]
    body: bytearray


@dataclasses.dataclass(frozen=True)
class Call(Generic[R]):
    """What is asked, and how its answer is read."""

    method: str
    path: str
    read: Callable[[Reply, Meta], R]
    accepts: tuple[int, ...] = (200,)
    media_type: str = ""
    parts: tuple[Part, ...] = ()
    request_id: str | None = None
    timeout: float | None = None


class Timeouts(dict[str, float]):
    """httpx's timeouts: each is the time left when it is looked up. `connect` is, only to open a connection."""

    def __init__(self, deadline: float, clock: Callable[[], float]) -> None:
        self._deadline, self._clock, self.is_new_connection = deadline, clock, False

    def __missing__(self, name: str) -> float:
        self.is_new_connection |= name == "connect"
        # Not zero, which sockets take for not waiting at all.
        return max(0.001, min(self._deadline - self._clock(), _CONNECT_S if name == "connect" else _DAY_S))

    def get(self, name: str, _: object = None) -> float:
        """Looks a timeout up."""
        return self[name]

    def check(self) -> None:
        """Raises TimeoutError when no time is left."""
        if self._clock() >= self._deadline:
            raise TimeoutError("the time budget is used up")


class Attempt(NamedTuple):
    """One request, for a client to send."""

    method: str
    url: str
    headers: Mapping[str, str]
    parts: tuple[Part, ...]
    timeouts: Timeouts

    @property
    def is_small(self) -> bool:
        """Whether the body is better sent in one piece."""
        return sum(map(len, self.parts)) <= _PIECE_BYTES

    def pieces(self) -> Iterator[Part]:
        """Yields the body as small views."""
        for part in self.parts:
            for start in range(0, len(part), _PIECE_BYTES):
                self.timeouts.check()
                yield part[start : start + _PIECE_BYTES]


class RetryBudget:
    """Keeps retries at 10 % of all calls and a reserve of 10, so that they don't bury a service that is down."""

    def __init__(self, *, share: float = 0.1, reserve: float = 10.0) -> None:
        self._share, self._reserve, self._left = share, reserve, reserve

    def deposit(self) -> None:
        """Adds what a call earns. Without a lock: threads may cost a retry more or less."""
        self._left = min(self._reserve, self._left + self._share)

    def withdraw(self) -> bool:
        """Takes a retry out, and says whether there was one."""
        is_enough = self._left >= 1
        self._left -= is_enough
        return is_enough


def wait_s(attempt: int, *, retry_after: str, chance: float) -> float:
    """Returns the seconds to wait after an attempt, from 1: those of Retry-After, and full jitter.

    The jitter is `chance`, uniform in [0, 1), of 0.25 s, twice that after each further attempt, at most 8 s.
    """
    asked_s = float(retry_after) if retry_after.isdecimal() else 0.0  # it may be a date; the service sends none
    return asked_s + chance * min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(attempt - 1, 10))


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")  # as a connection does
    except ValueError:
        return False
    is_clean = url.isprintable() and not set(" ?#") & set(url) and "@" not in parts.netloc
    return is_clean and parts.scheme in {"http", "https"} and host != "" and port != 0


def _check_timeout(seconds: float | None) -> None:
    if seconds is None or not 0 < seconds < math.inf:  # NaN is neither
        raise ValueError(f"timeout must be a finite number of seconds above 0, not {seconds}")


def new_request_id() -> str:
    """Returns 32 hexadecimal digits."""
    return f"{random.getrandbits(128):032x}"


def exchange(
    call: Call[R],
    config: Config,
    budget: RetryBudget,
    clock: Callable[[], float] = time.monotonic,
    chance: Callable[[], float] = random.random,
) -> Generator[Attempt | float, Reply | Exception | None, R]:
    """Sends a call until it is answered, refused for good, or out of time or attempts.

    Yields attempts, for which it is sent the reply or httpx's error, and seconds to wait.

    Raises:
        APIConnectionError, APIStatusError: What came of the last attempt.
        ValueError: The call's timeout or request_id can't be used.
    """
    timeout_s = config.timeout if call.timeout is None else call.timeout
    _check_timeout(timeout_s)
    deadline, request_id = clock() + timeout_s, call.request_id or new_request_id()
    if not _REQUEST_ID.fullmatch(request_id):
        raise ValueError(f"request_id must be at most 64 letters, digits and ._-, not {request_id!r}")
    headers = {"X-Request-Id": request_id}
    if call.parts:
        headers |= {"Content-Type": call.media_type, "Content-Length": str(sum(map(len, call.parts)))}
    if config.api_key:
        headers["Authorization"] = f"Bearer {config.api_key}"
    budget.deposit()
    attempt, may_be_stale = 1, True
    while True:
        timeouts = Timeouts(deadline, clock)
        headers = {**headers, "X-Request-Timeout": f"{timeouts['read']:.3f}"}
        outcome = yield Attempt(call.method, config.base_url.rstrip("/") + call.path, headers, call.parts, timeouts)
        if isinstance(outcome, Reply) and outcome.status_code in call.accepts:
            return _read(call, outcome, request_id, attempt)
        if may_be_stale and _is_stale(outcome, timeouts):
            may_be_stale = False
            continue
        error, retry_after = _judge(outcome, request_id)
        pause_s = math.inf if retry_after is None else wait_s(attempt, retry_after=retry_after, chance=chance())
        is_in_time = clock() + pause_s < deadline
        if not is_in_time or not (config.is_patient or (attempt < config.max_attempts and budget.withdraw())):
            raise error
        _log.info("attempt %d failed, the next follows in %.2f s: %s", attempt, pause_s, error)
        yield pause_s
        attempt += 1


def _is_stale(outcome: object, timeouts: Timeouts) -> bool:
    """Tells whether an idle connection was cut: the server had closed it meanwhile, which is nobody's fault."""
    import httpx  # noqa: PLC0415 - takes longer to import than all the rest

    is_cut = isinstance(outcome, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError)
    return is_cut and not timeouts.is_new_connection


def _judge(outcome: Reply | Exception | None, request_id: str) -> tuple[LossevalError, str | None]:
    """Returns the error an outcome amounts to, and Retry-After; None: trying again can't help."""
    import httpx  # noqa: PLC0415

    if isinstance(outcome, Reply):
        error = APIStatusError.of(outcome.status_code, outcome.body, outcome.headers.get("x-request-id", request_id))
        return error, outcome.headers.get("retry-after", "") if outcome.status_code in _RETRIED else None
    kind = APITimeoutError if isinstance(outcome, httpx.TimeoutException | TimeoutError) else APIConnectionError
    is_permanent = isinstance(outcome, httpx.InvalidURL | httpx.UnsupportedProtocol)
    return kind(f"{type(outcome).__name__}: {outcome}", request_id), None if is_permanent else ""


def _read(call: Call[R], reply: Reply, request_id: str, attempts: int) -> R:
    request_id = reply.headers.get("x-request-id", request_id)
    version, timing = (reply.headers.get(name, "") for name in ("x-service-version", "server-timing"))
    try:
        return call.read(reply, Meta(request_id, version, timing, attempts))
    except Exception as error:
        raise APIResponseError(f"not the service's answer: {type(error).__name__}: {error}", request_id) from error
