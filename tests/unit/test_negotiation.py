"""Media types in and out, and the sizes that are checked before a body is read."""

import contextlib

import pytest

from service.api.negotiation import JSON, OCTETS, SAFETENSORS, BodyLimits, Head, answer_type, wire_of
from service.engine.admission import Wire
from service.errors import LimitExceeded, NotAcceptable, UnsupportedMediaType

BOTH: tuple[Wire, ...] = ("json", "binary")
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
ACCEPTED = [
    # Accept, the answer to JSON, the answer to safetensors
    pytest.param("", JSON, SAFETENSORS, id="absent"),
    pytest.param("*/*", JSON, SAFETENSORS, id="anything"),
    pytest.param("application/*", JSON, SAFETENSORS, id="any-application"),
    pytest.param(BROWSER, JSON, SAFETENSORS, id="a-browser"),
    pytest.param("application/json", JSON, JSON, id="json"),
    pytest.param("application/x-safetensors", SAFETENSORS, SAFETENSORS, id="safetensors"),
    pytest.param("APPLICATION/X-SAFETENSORS", SAFETENSORS, SAFETENSORS, id="upper-case"),
    pytest.param("application/octet-stream", OCTETS, OCTETS, id="alias"),
    pytest.param("text/html, application/octet-stream;q=0.1", OCTETS, OCTETS, id="alias-and-what-does-not-exist"),
    pytest.param("application/octet-stream, application/x-safetensors", SAFETENSORS, SAFETENSORS, id="both-names"),
    pytest.param("application/octet-stream, */*;q=0.1", SAFETENSORS, SAFETENSORS, id="alias-and-anything"),
    pytest.param("application/json, application/x-safetensors", JSON, SAFETENSORS, id="both-alike"),
    pytest.param("application/x-safetensors, application/json", JSON, SAFETENSORS, id="both-alike-reversed"),
    pytest.param("application/json;q=0.5, application/x-safetensors;q=0.5", JSON, SAFETENSORS, id="equal-weights"),
    pytest.param("application/json;q=0.9, application/x-safetensors", SAFETENSORS, SAFETENSORS, id="binary-rather"),
    pytest.param("application/json, application/x-safetensors;q=0.9", JSON, JSON, id="json-rather"),
    pytest.param("application/json, application/octet-stream;q=0.001", JSON, JSON, id="json-rather-than-the-alias"),
    pytest.param("application/json;q=0.1, */*;q=0.5", SAFETENSORS, SAFETENSORS, id="anything-rather-than-json"),
    pytest.param("application/json;q=0.1, application/*;q=0.5", SAFETENSORS, SAFETENSORS, id="application-rather"),
    pytest.param("*/*, application/json;q=0", SAFETENSORS, SAFETENSORS, id="anything-but-json"),
    pytest.param("application/x-safetensors;q=0, application/octet-stream;q=0, */*", JSON, JSON, id="nothing-binary"),
    pytest.param("application/*;q=0, application/json", JSON, JSON, id="specific-before-general"),
    pytest.param("application/json;charset=utf-8;q=0.5", JSON, JSON, id="other-parameters"),
    pytest.param("  application/json  ;  q=0.5  ,  ", JSON, JSON, id="blanks"),
]


@pytest.mark.parametrize(("accept", "to_json", "to_binary"), ACCEPTED)
def test_the_answer_is_what_the_caller_likes_best_else_what_it_sent(accept: str, to_json: str, to_binary: str) -> None:
    assert answer_type(accept.encode(), "json") == to_json
    assert answer_type(accept.encode(), "binary") == to_binary


@pytest.mark.parametrize(
    "accept",
    [
        "text/html",
        "application/xml",
        "application/json;q=0",
        "*/*;q=0",
        "application/*;q=0.0, text/*",
        "application/json;q=0, application/x-safetensors;q=0.000, application/octet-stream;q=0, */*;q=1",
        "application/x-safetensors2",
        "x-safetensors",
    ],
)
@pytest.mark.parametrize("wire", BOTH)
def test_what_excludes_every_type_is_not_acceptable(accept: str, wire: Wire) -> None:
    with pytest.raises(NotAcceptable, match=r"application/json, application/x-safetensors, application/octet-stream"):
        answer_type(accept.encode(), wire)


@pytest.mark.parametrize("weight", ["nan", "-1", "-inf", "inf", "2", "x", "", "1e999", "0x1", "1_0"])
@pytest.mark.parametrize("wire", BOTH)
@pytest.mark.parametrize("named", [JSON, SAFETENSORS])
def test_a_weight_that_is_none_never_leads_to_a_type_that_was_not_named(named: str, wire: Wire, weight: str) -> None:
    with contextlib.suppress(NotAcceptable):
        assert answer_type(f"{named};q={weight}".encode(), wire) == named


@pytest.mark.parametrize(
    ("content_type", "wire"),
    [
        ("application/json", "json"),
        ("Application/JSON; Charset=UTF-8", "json"),
        ("application/x-safetensors", "binary"),
        ("APPLICATION/X-SAFETENSORS", "binary"),
        ("application/x-safetensors; version=1", "binary"),
        ("application/octet-stream", "binary"),
        ("application/octet-stream ;charset=latin-1", "binary"),
    ],
)
def test_known_media_types_have_their_wire(content_type: str, wire: Wire) -> None:
    assert wire_of(content_type.encode()) == wire


@pytest.mark.parametrize(
    "content_type",
    [
        *("", ";", "application/safetensors", "application/x-safetensors2", "application/*", "*/*", "octet-stream"),
        *("application/json; charset=latin-1", "application/json, application/json", "text/json", "\xff"),
        "application/x-safetensors, application/json",
    ],
)
def test_other_media_types_are_unsupported(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaType, match=r"application/x-safetensors"):
        wire_of(content_type.encode("latin-1"))


def test_a_header_given_twice_is_a_list() -> None:
    headers = [(b"content-type", b"application/json"), (b"accept", b"text/html"), (b"accept", SAFETENSORS.encode())]
    head = Head.of(headers, timeout_s=1.0)
    assert (head.wire, head.answer, head.content_length, head.timeout_s) == ("json", SAFETENSORS, None, 1.0)


def exceeded(limits: BodyLimits, wire: Wire, size: int) -> tuple[object, ...] | None:
    """What the refusal says, or None where there is none."""
    try:
        limits.check(wire, size)
    except LimitExceeded as error:
        return error.data["limit_name"], error.data["limit"], error.data["actual"], SAFETENSORS in error.detail
    return None


def test_transfer_encoding_overrides_content_length() -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"50")]
    assert Head.of(headers, timeout_s=1).content_length == 50
    assert Head.of([*headers, (b"transfer-encoding", b"chunked")], timeout_s=1).content_length is None


def test_json_is_limited_earlier_than_binary_and_pointed_to_it() -> None:
    limits = BodyLimits(max_body_bytes=100, max_json_bytes=10, timeout_s=1)
    assert exceeded(limits, "json", 10) is None
    assert exceeded(limits, "json", 11) == ("MAX_JSON_BYTES", 10, 11, True)
    assert exceeded(limits, "json", 101) == ("MAX_JSON_BYTES", 10, 101, True)
    assert exceeded(limits, "binary", 100) is None
    assert exceeded(limits, "binary", 101) == ("MAX_BODY_BYTES", 100, 101, False)


@pytest.mark.parametrize("max_json_bytes", [100, 200])
def test_where_binary_bodies_may_be_no_larger_json_is_not_pointed_to_them(max_json_bytes: int) -> None:
    limits = BodyLimits(max_body_bytes=100, max_json_bytes=max_json_bytes, timeout_s=1)
    for wire in BOTH:
        assert exceeded(limits, wire, 100) is None
        assert exceeded(limits, wire, 101) == ("MAX_BODY_BYTES", 100, 101, False)


@pytest.mark.parametrize(("max_json_bytes", "most"), [(800, 100), (807, 100), (7, 0), (8, 1)])
def test_a_json_answer_holds_an_eighth_of_the_bytes_in_numbers(max_json_bytes: int, most: int) -> None:
    limits = BodyLimits(max_body_bytes=10_000, max_json_bytes=max_json_bytes, timeout_s=1)
    limits.check_answer(JSON, most)
    with pytest.raises(LimitExceeded) as raised:
        limits.check_answer(JSON, most + 1)
    assert raised.value.data == {"limit_name": "MAX_JSON_BYTES", "limit": most, "actual": most + 1}
    assert SAFETENSORS in raised.value.detail
    for binary in (SAFETENSORS, OCTETS):
        limits.check_answer(binary, 10**9)
