"""What the headers decide before the body is read (RFC 9110, sections 8 and 12)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import InvalidHeader, LimitExceeded, NotAcceptable, UnsupportedContentEncoding, UnsupportedMediaType

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """What a request may send, and how long it may take."""

    max_body_bytes: int
    max_json_bytes: int
    timeout_s: float

    def check(self, size: int) -> None:
        """Checks the size of a JSON body, announced or received.

        Raises:
            LimitExceeded: It is too large.
        """
        name = "MAX_JSON_BYTES" if self.max_json_bytes <= self.max_body_bytes else "MAX_BODY_BYTES"
        limit = min(self.max_json_bytes, self.max_body_bytes)
        if size > limit:
            advice = "Split the batch: with reduction=sum, loss_sum and normalizer of the parts add up to the whole."
            raise LimitExceeded(name, limit, size, advice)


@dataclass(frozen=True, slots=True)
class Head:
    """The headers of an evaluation, checked."""

    content_length: int
    """The most a body of unknown length may have, if it is unknown."""
    timeout_s: float

    @classmethod
    def of(cls, headers: Iterable[tuple[bytes, bytes]], limits: BodyLimits) -> "Head":
        """Reads the headers.

        Raises:
            InvalidHeader, UnsupportedMediaType, UnsupportedContentEncoding: In this order, then
            NotAcceptable, LimitExceeded.
        """
        found: dict[bytes, bytes] = {}
        for name, value in headers:
            found[name] = found[name] + b", " + value if name in found else value
        timeout_s = _timeout(found.get(b"x-request-timeout"), limits.timeout_s)
        check_content_type(found.get(b"content-type", b""))
        check_content_encoding(found.get(b"content-encoding", b""))
        check_accept(found.get(b"accept", b""))
        length = int(found.get(b"content-length", limits.max_json_bytes))
        limits.check(length if b"content-length" in found else 0)
        return cls(length, timeout_s)


def check_content_type(content_type: bytes) -> None:
    """Accepts JSON in UTF-8.

    Raises:
        UnsupportedMediaType: The type is missing or another.
    """
    if content_type == b"application/json":
        return
    kind, *parameters = content_type.decode("latin-1").lower().split(";")
    charsets = [part.partition("=")[2].strip(' "') for part in parameters if part.strip().startswith("charset")]
    if kind.strip() != JSON or any(charset not in {"utf-8", "utf8", "us-ascii"} for charset in charsets):
        shown = kind.strip()[:64] or "missing"
        raise UnsupportedMediaType(f"Content-Type is {shown}; supported are: {JSON} (UTF-8).")


def check_content_encoding(content_encoding: bytes) -> None:
    """Accepts bodies as they are.

    Raises:
        UnsupportedContentEncoding: The body is compressed.
    """
    if content_encoding.strip().lower() not in {b"", b"identity"}:
        raise UnsupportedContentEncoding("Send the body uncompressed; supported are: identity.")


def check_accept(accept: bytes) -> None:
    """Accepts callers that take JSON.

    Raises:
        NotAcceptable: No range in Accept with a weight above 0 covers it.
    """
    if accept not in {b"", b"*/*", b"application/json"} and _weight(accept.decode("latin-1").lower()) == 0:
        raise NotAcceptable(f"Accept excludes every type this service can answer with: {JSON}.")


def _weight(accept: str) -> float:
    """Returns the quality of the most specific range that covers JSON."""
    ranges = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        ranges[name] = next((_quality(piece[2:]) for piece in parameters if piece.startswith("q=")), 1.0)
    return next((ranges[name] for name in (JSON, "application/*", "*/*") if name in ranges), 0.0)


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 1.0


def _timeout(value: bytes | None, longest_s: float) -> float:
    if value is None:
        return longest_s
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise InvalidHeader("X-Request-Timeout must be a finite number of seconds above 0, e.g. 2.5.")
    return min(seconds, longest_s)
