"""Content negotiation: what the body may be, and what the answer may be (RFC 9110, sections 8 and 12)."""

from ..errors import NotAcceptable, UnsupportedContentEncoding, UnsupportedMediaType

JSON = "application/json"


def check_content_type(content_type: bytes | None) -> None:
    """Accepts JSON in UTF-8.

    Raises:
        UnsupportedMediaType: The type is missing or another.
    """
    if content_type == b"application/json":
        return
    kind, *parameters = (content_type or b"").decode("latin-1").lower().split(";")
    charsets = [part.split("=")[1].strip(' "') for part in parameters if part.strip().startswith("charset=")]
    if kind.strip() != JSON or any(charset not in {"utf-8", "utf8", "us-ascii"} for charset in charsets):
        detail = f"Content-Type is {kind.strip()[:64] or 'missing'}; supported are: {JSON} (UTF-8)."
        raise UnsupportedMediaType(detail)


def check_content_encoding(content_encoding: bytes | None) -> None:
    """Accepts bodies as they are.

    Raises:
        UnsupportedContentEncoding: The body is compressed.
    """
    if content_encoding is not None and content_encoding.strip().lower() not in {b"", b"identity"}:
        detail = "Content-Encoding is not supported; supported are: identity. Send the body uncompressed."
        raise UnsupportedContentEncoding(detail)


def check_accept(accept: bytes | None) -> None:
    """Accepts callers that take JSON.

    Raises:
        NotAcceptable: No range in Accept with a weight above 0 covers it.
    """
    if accept is None or accept in {b"*/*", b"application/json", b""}:
        return
    if _weight(accept.decode("latin-1").lower(), JSON) == 0:
        detail = f"Accept excludes every type this service can answer with: {JSON}."
        raise NotAcceptable(detail)


def _weight(accept: str, media_type: str) -> float:
    """Returns the quality of the most specific range that covers the type."""
    ranges = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
        ranges[name] = _quality(quality)
    main = media_type.split("/", maxsplit=1)[0]
    return next((ranges[name] for name in (media_type, f"{main}/*", "*/*") if name in ranges), 0.0)


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 1.0
