"""What the headers decide before the body is read (RFC 9110, sections 8 and 12)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..engine.admission import Wire
from ..errors import InvalidHeader, LimitExceeded, NotAcceptable, UnsupportedContentEncoding, UnsupportedMediaType

JSON = "application/json"
SAFETENSORS = "application/x-safetensors"
OCTETS = "application/octet-stream"
"""An alias of safetensors, for clients that can't name a media type of their own."""
WIRES: Mapping[str, Wire] = {JSON: "json", SAFETENSORS: "binary", OCTETS: "binary"}
_SPLIT = "or split the batch: with reduction=sum, loss_sum and normalizer of the parts add up to the whole."


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """What a request may send, and how long it may take; its body a grace, and then as long as the rate allows."""

    max_body_bytes: int
    max_json_bytes: int
    timeout_s: float
    grace_s: float = 5.0
    min_bytes_per_s: int = 1 << 16

    def check(self, wire: Wire, size: int) -> None:
        """Checks the size of a body, announced or received.

        Raises:
            LimitExceeded: It is too large.
        """
        if wire == "json" and size > self.max_json_bytes and self.max_json_bytes < self.max_body_bytes:
            advice = f"Send {SAFETENSORS}, of which up to {self.max_body_bytes} bytes are taken, {_SPLIT}"
            raise LimitExceeded("MAX_JSON_BYTES", self.max_json_bytes, size, advice)
        if size > self.max_body_bytes:
            raise LimitExceeded("MAX_BODY_BYTES", self.max_body_bytes, size, f"Send smaller dtypes, {_SPLIT}")

    def check_answer(self, media_type: str, numbers: int) -> None:
        """Checks how many numbers an answer will hold, before they are computed: JSON takes eight bytes for each.

        Raises:
            LimitExceeded: They are too many for JSON.
        """
        limit = self.max_json_bytes // 8
        if media_type == JSON and numbers > limit:
            advice = f"So many numbers are too many for JSON; send Accept: {SAFETENSORS}, include less, {_SPLIT}"
            rule = "the numbers of a JSON answer, MAX_JSON_BYTES / 8"
            raise LimitExceeded("MAX_JSON_BYTES", limit, numbers, advice, rule=rule)


@dataclass(frozen=True, slots=True)
class Head:
    """The headers of an evaluation, checked; `answer` is the media type of the answer."""

    wire: Wire
    answer: str
    content_length: int | None
    timeout_s: float

    @classmethod
    def of(cls, headers: Sequence[tuple[bytes, bytes]], *, timeout_s: float) -> "Head":
        """Reads the headers; the caller's own time-out is capped by `timeout_s`.

        Raises:
            InvalidHeader, UnsupportedMediaType, UnsupportedContentEncoding, NotAcceptable: In this order.
        """
        found = dict(headers)
        if len(found) < len(headers):
            found = _combined(headers)
        if b"x-request-timeout" in found:
            timeout_s = _timeout(found[b"x-request-timeout"], timeout_s)
        sent, encoded, accepted = (
            found.get(b"content-type", b""),
            found.get(b"content-encoding", b""),
            found.get(b"accept", b""),
        )
        is_usual = len(sent) + len(encoded) + len(accepted) <= _LONGEST_CACHED
        wire, answer = (_negotiate if is_usual else _negotiate.__wrapped__)(sent, encoded, accepted)
        # Transfer-Encoding overrides Content-Length (RFC 9112, section 6.3).
        length = None if b"transfer-encoding" in found else found.get(b"content-length")
        return cls(wire, answer, None if length is None else int(length), timeout_s)


def _combined(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Joins the values of repeated headers by commas (RFC 9110, section 5.3)."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        found[name] = found[name] + b", " + value if name in found else value
    return found


_LONGEST_CACHED = 512


@lru_cache(maxsize=256)
def _negotiate(content_type: bytes, content_encoding: bytes, accept: bytes) -> tuple[Wire, str]:
    """Decides on the forms of request and answer; once for each kind of client."""
    wire = wire_of(content_type)
    check_content_encoding(content_encoding)
    return wire, answer_type(accept, wire)


def wire_of(content_type: bytes) -> Wire:
    """Returns the wire form of a body: JSON in UTF-8, or safetensors.

    Raises:
        UnsupportedMediaType: The type is missing or another.
    """
    kind, *parameters = (part.strip() for part in content_type.decode("latin-1").lower().split(";"))
    charsets = [part.partition("=")[2].strip(' "') for part in parameters if part.startswith("charset")]
    if kind not in WIRES or (kind == JSON and not {"utf-8", "utf8", "us-ascii"}.issuperset(charsets)):
        shown = kind[:64] or "missing"
        raise UnsupportedMediaType(f"Content-Type is {shown}; supported are: {', '.join(WIRES)} (JSON in UTF-8).")
    return WIRES[kind]


def check_content_encoding(content_encoding: bytes) -> None:
    """Accepts bodies as they are.

    Raises:
        UnsupportedContentEncoding: The body is compressed.
    """
    if content_encoding.strip().lower() not in {b"", b"identity"}:
        raise UnsupportedContentEncoding("Send the body uncompressed; supported are: identity.")


def answer_type(accept: bytes, wire: Wire) -> str:
    """Returns the media type of the answer: what the caller likes best, among equals the request's own form.

    Raises:
        NotAcceptable: No range in Accept with a weight above 0 covers any.
    """
    ranges = _ranges(accept.decode("latin-1").lower() or "*/*")
    json, safetensors, alias = (_weight(ranges, kind) for kind in (JSON, SAFETENSORS, OCTETS))
    binary = max(safetensors, alias)
    if json == binary == 0:
        raise NotAcceptable(f"Accept excludes every type this service can answer with: {', '.join(WIRES)}.")
    if json > binary or (json == binary and wire == "json"):
        return JSON
    return SAFETENSORS if safetensors else OCTETS


def _ranges(accept: str) -> dict[str, float]:
    ranges = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        ranges[name] = next((_quality(piece[2:]) for piece in parameters if piece.startswith("q=")), 1.0)
    return ranges


def _weight(ranges: Mapping[str, float], media_type: str) -> float:
    """Returns the quality of the most specific range that covers the type."""
    return next((ranges[name] for name in (media_type, "application/*", "*/*") if name in ranges), 0.0)


def _quality(text: str) -> float:
    try:
        return min(1.0, max(0.0, float(text)))  # in this order, NaN is 0
    except ValueError:
        return 1.0


def _timeout(value: bytes, longest_s: float) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise InvalidHeader("X-Request-Timeout must be a finite number of seconds above 0, e.g. 2.5.")
    return min(seconds, longest_s)
