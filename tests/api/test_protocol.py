"""Refusals that HTTP itself knows: paths, methods, media types, headers, and their order."""

import httpx
import pytest

from tests.calls import EXAMPLE, PATH, check_problem, post, send, words
from tests.wire import encode

MEDIA_TYPES = ["application/json", "application/x-safetensors", "application/octet-stream"]
GET_PATHS = ["/v1/info", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json"]


def allowed(response: httpx.Response) -> set[str]:
    return {method.strip() for method in response.headers["allow"].split(",")}


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/cross-entropy/", "/v1/info/", "/V1/info", "//"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_unknown_path_is_not_found_and_never_redirected(path: str, method: str, client: httpx.Client) -> None:
    response = client.request(
        method, f"{client.base_url}".rstrip("/") + path, json=EXAMPLE if method == "POST" else None
    )
    check_problem(response, 404, "not_found")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "PROPFIND"])
def test_evaluating_takes_post_only(method: str, client: httpx.Client) -> None:
    response = client.request(method, PATH)
    assert response.status_code == 405
    assert "POST" in allowed(response)
    assert "GET" not in allowed(response)
    if method == "HEAD":
        assert response.content == b""
    else:
        check_problem(response, 405, "method_not_allowed")


@pytest.mark.parametrize("path", GET_PATHS)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_reading_takes_get_and_head_only(path: str, method: str, client: httpx.Client) -> None:
    response = client.request(method, path)
    check_problem(response, 405, "method_not_allowed")
    assert {"GET", "HEAD"} <= allowed(response)
    assert "POST" not in allowed(response)


@pytest.mark.parametrize("path", GET_PATHS)
def test_head_is_get_without_the_body(path: str, client: httpx.Client) -> None:
    head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    if path != "/metrics":  # changes from one look to the next
        assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.content))


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        pytest.param(PATH, {"POST", "OPTIONS"}, id="operation"),
        *((path, {"GET", "HEAD", "OPTIONS"}) for path in GET_PATHS),
    ],
)
def test_options_names_the_methods(path: str, methods: set[str], client: httpx.Client) -> None:
    response = client.options(path)
    assert response.status_code in {200, 204}
    assert allowed(response) == methods
    assert response.content == b""


@pytest.mark.parametrize(
    "media_type",
    [
        pytest.param("text/plain", id="text"),
        pytest.param("application/x-www-form-urlencoded", id="form"),
        pytest.param("application/safetensors", id="safetensors-without-x"),
        pytest.param("application/octet-streams", id="octet-streams"),
        pytest.param("multipart/form-data; boundary=x", id="multipart"),
        pytest.param("application/jsonp", id="name-that-begins-the-same"),
        pytest.param("application/vnd.api+json", id="other-json"),
        pytest.param("application/json garbage", id="malformed"),
        pytest.param("", id="empty"),
        pytest.param(None, id="missing"),
    ],
)
def test_other_media_types_are_unsupported(media_type: str | None, client: httpx.Client) -> None:
    headers = {} if media_type is None else {"content-type": media_type}
    problem = check_problem(client.post(PATH, content=encode(EXAMPLE), headers=headers), 415, "unsupported_media_type")
    assert all(supported in words(problem) for supported in MEDIA_TYPES)


@pytest.mark.parametrize(
    "media_type",
    ["application/json", "APPLICATION/JSON", "application/json; charset=utf-8", "application/json;charset=UTF-8"],
)
def test_json_is_supported_however_it_is_written(media_type: str, client: httpx.Client) -> None:
    response = client.post(PATH, content=encode(EXAMPLE), headers={"content-type": media_type})
    assert response.json()["loss"] == pytest.approx(1.2130, abs=5e-5)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_compressed_bodies_are_unsupported(encoding: str, client: httpx.Client) -> None:
    check_problem(post(client, EXAMPLE, content_encoding=encoding), 415, "unsupported_content_encoding")


@pytest.mark.parametrize(
    "accept",
    ["text/html", "application/xml, text/*", "application/json;q=0", "image/png;q=0.9", "application/safetensors"],
)
def test_answer_that_can_not_be_given_is_not_acceptable(accept: str, client: httpx.Client) -> None:
    problem = check_problem(post(client, EXAMPLE, accept=accept), 406, "not_acceptable")
    assert all(supported in words(problem) for supported in MEDIA_TYPES)


@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        "application/*",
        "application/json",
        "text/html, application/json;q=0.1",
        "application/json; charset=utf-8",
        "",
    ],
)
def test_answer_that_can_be_given_is_given(accept: str, client: httpx.Client) -> None:
    response = post(client, EXAMPLE, accept=accept)
    assert response.headers["content-type"] == "application/json"
    assert response.json()["loss"] == pytest.approx(1.2130, abs=5e-5)


def test_answers_are_never_compressed(client: httpx.Client) -> None:
    response = post(client, EXAMPLE, accept_encoding="gzip, deflate, br, zstd")
    assert "content-encoding" not in response.headers
    assert response.headers["content-length"] == str(len(response.content))


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "Infinity", "soon", "", "1,5", "1e999", "0x10", "1 s"])
def test_timeout_that_is_no_positive_number_of_seconds_is_an_invalid_header(timeout: str, client: httpx.Client) -> None:
    problem = check_problem(post(client, EXAMPLE, x_request_timeout=timeout), 400, "invalid_header")
    assert "X-Request-Timeout" in words(problem)


@pytest.mark.parametrize("timeout", ["30", "0.5", "1e3", "100000"])
def test_timeout_in_seconds_is_taken(timeout: str, client: httpx.Client) -> None:
    assert post(client, EXAMPLE, x_request_timeout=timeout).json()["loss"] == pytest.approx(1.2130, abs=5e-5)


def test_request_that_can_not_be_answered_in_time_exceeds_its_deadline(client: httpx.Client) -> None:
    check_problem(post(client, EXAMPLE, x_request_timeout="0.000001"), 504, "deadline_exceeded")


ORDER = [
    pytest.param("/nothing", {"content-type": "text/plain"}, 404, id="path-before-media-type"),
    pytest.param("/livez", {"content-type": "text/plain"}, 405, id="method-before-media-type"),
    pytest.param(PATH, {"content-type": "text/plain", "accept": "text/html"}, 415, id="media-type-before-accept"),
    pytest.param(PATH, {"content-type": "application/json", "accept": "text/html"}, 406, id="accept-before-size"),
    pytest.param(PATH, {"content-type": "application/json"}, 413, id="size-before-content"),
    pytest.param(PATH, {"content-type": "text/plain", "x-request-timeout": "x"}, 400, id="header-before-media-type"),
]


@pytest.mark.parametrize(("path", "headers", "status"), ORDER)
def test_refusals_come_in_order(path: str, headers: dict[str, str], status: int, client: httpx.Client) -> None:
    """Each request is wrong in everything that comes later in the order as well."""
    too_large_and_no_json = b"x" * (16 * 2**20 + 1)
    response = client.post(path, content=too_large_and_no_json, headers=headers)
    assert response.json()["status"] == response.status_code == status


def test_refused_connection_can_be_used_again(client: httpx.Client) -> None:
    for _ in range(3):
        check_problem(send(client, "{"), 400, "malformed_json")
        assert post(client, EXAMPLE).json()["loss"] == pytest.approx(1.2130, abs=5e-5)
