"""Headers, the paths beside the operation, and what a stranger may rely on."""

import platform
import re
from importlib.metadata import version
from urllib.parse import urljoin

import httpx
import pytest
import torch

from tests.calls import EXAMPLE, PATH, check_problem, post, send

ERROR_CODES = [
    "malformed_json",
    "malformed_tensors",
    "duplicate_field",
    "unknown_field",
    "invalid_header",
    "malformed_request",
    "not_found",
    "method_not_allowed",
    "not_acceptable",
    "unsupported_media_type",
    "unsupported_content_encoding",
    "request_timeout",
    "limit_exceeded",
    "missing_field",
    "invalid_value",
    "number_out_of_range",
    "unsupported_dtype",
    "shape_mismatch",
    "label_out_of_range",
    "headers_too_large",
    "internal_error",
    "overloaded",
    "draining",
    "not_ready",
    "deadline_exceeded",
]
OUTPUTS = {
    *("loss", "losses", "gradients", "nll", "probabilities", "logsumexp", "entropy", "margin", "gradient_norm"),
    *("predictions", "summary"),
}
MEDIA_TYPES = ["application/json", "application/x-safetensors", "application/octet-stream"]
FLOATS = {"F64", "F32", "F16", "BF16"}
INTEGERS = {f"{sign}{bits}" for sign in "IU" for bits in (8, 16, 32, 64)}


def every_kind_of_answer(client: httpx.Client, **headers: str) -> list[httpx.Response]:
    """Answers of the operation, of reading, and of refusing in each layer."""
    return [
        post(client, EXAMPLE, **headers),
        send(client, "{", **headers),
        post(client, {}, **headers),
        client.get("/v1/info", headers=headers),
        client.get("/livez", headers=headers),
        client.get("/docs", headers=headers),
        client.get("/nothing", headers=headers),
        client.delete("/v1/info", headers=headers),
        client.post(PATH, content=b"x", headers={"content-type": "text/plain", **headers}),
    ]


@pytest.mark.parametrize("given", ["a", "A-Za.z0_9", "x" * 64, "-"])
def test_well_formed_request_id_is_echoed(given: str, client: httpx.Client) -> None:
    for response in every_kind_of_answer(client, **{"x-request-id": given}):
        assert response.headers["x-request-id"] == given
        if response.is_error:
            assert response.json()["request_id"] == given


@pytest.mark.parametrize(
    "given", ["", "x" * 65, "a b", "a/b", "<script>", "a\tb", "ä".encode("latin-1").decode("latin-1")]
)
def test_other_request_ids_are_replaced(given: str, client: httpx.Client) -> None:
    for response in every_kind_of_answer(client, **{"x-request-id": given.encode("latin-1")}):  # type: ignore[arg-type]
        made = response.headers["x-request-id"]
        assert made != given
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", made)


def test_made_request_ids_differ(client: httpx.Client) -> None:
    made = [response.headers["x-request-id"] for _ in range(5) for response in every_kind_of_answer(client)]
    assert len(set(made)) == len(made)


def test_every_answer_says_its_version_and_is_not_stored(client: httpx.Client) -> None:
    current = client.get("/v1/info").json()["version"]
    for response in every_kind_of_answer(client):
        assert response.headers["x-service-version"] == current
    assert post(client, EXAMPLE).headers["cache-control"] == "no-store"
    assert send(client, "{").headers["cache-control"] == "no-store"


def test_server_timing_names_the_stages_in_order(client: httpx.Client) -> None:
    header = post(client, EXAMPLE).headers["server-timing"]
    duration = r"dur=\d+(\.\d+)?"
    stages = ", ".join(f"{stage};{duration}" for stage in ("decode", "queue", "compute", "encode"))
    assert re.fullmatch(f'{stages}, batch;desc="requests=1 rows=3"', header), header


def test_server_timing_adds_up_to_no_more_than_the_round_trip(client: httpx.Client) -> None:
    response = post(client, EXAMPLE)
    total_ms = sum(float(dur) for dur in re.findall(r"dur=([\d.]+)", response.headers["server-timing"]))
    assert 0 < total_ms <= response.elapsed.total_seconds() * 1000


@pytest.mark.parametrize("parent", ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "garbage", ""])
def test_trace_parent_never_disturbs(parent: str, client: httpx.Client) -> None:
    assert post(client, EXAMPLE, traceparent=parent).json()["loss"] == pytest.approx(1.2130, abs=5e-5)


def test_info_tells_what_a_client_must_know(client: httpx.Client) -> None:
    info = client.get("/v1/info").json()
    names = "name version torch python device limits media_types dtypes include reduction precision"
    assert set(info) == set(names.split())
    assert info["name"] == "losseval"
    assert info["torch"] == torch.__version__
    assert info["python"] == platform.python_version()
    assert info["device"] == "cpu"
    assert set(info["include"]) == OUTPUTS
    assert set(info["reduction"]) == {"mean", "sum", "none"}
    assert set(info["precision"]) == {"standard", "high"}
    assert set(info["dtypes"]["logits"]) == FLOATS
    assert set(info["dtypes"]["labels"]) == FLOATS | INTEGERS
    assert {"F64", "F32"} <= set(info["dtypes"]["weights"]) <= FLOATS
    assert info["media_types"] == {"request": MEDIA_TYPES, "response": MEDIA_TYPES}


def test_info_tells_the_default_limits(client: httpx.Client) -> None:
    limits = {name.lower(): value for name, value in client.get("/v1/info").json()["limits"].items()}
    expected = {"max_body_bytes": 2**28, "max_json_bytes": 2**24, "max_classes": 2**20, "max_elements": 2**27}
    assert expected.items() <= limits.items()


def test_version_is_that_of_the_distribution(client: httpx.Client) -> None:
    assert client.get("/v1/info").json()["version"] == version("losseval-service")


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_is_a_tiny_json_body(path: str, client: httpx.Client) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert len(response.content) < 100
    assert isinstance(response.json(), dict)


def test_root_leads_to_the_documentation(client: httpx.Client) -> None:
    response = client.get("/")
    assert response.status_code in {302, 303, 307}
    assert urljoin("http://host/", response.headers["location"]) == "http://host/docs"


def test_documentation_works_without_a_network(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assets = re.findall(r"""(?:src|href)\s*=\s*["']([^"'#]+)["']""", page.text)
    assert any(asset.endswith(".js") for asset in assets)
    assert any(asset.endswith(".css") for asset in assets)
    sources = [client.get(urljoin("/docs", asset)).text for asset in assets if asset.endswith(".js")]
    assert any("openapi.json" in source for source in [page.text, *sources])
    for asset in assets:
        assert not re.match(r"(https?:)?//", asset)
        assert asset.startswith("data:") or client.get(urljoin("/docs", asset)).status_code == 200
        if asset.endswith(".css"):
            assert not re.search(r"url\(\s*['\"]?(https?:)?//", client.get(urljoin("/docs", asset)).text)


@pytest.mark.parametrize("code", ERROR_CODES)
def test_every_problem_type_has_a_page(code: str, client: httpx.Client) -> None:
    slug = code.replace("_", "-")
    page = client.get(f"/problems/{slug}")
    assert page.status_code == 200
    assert code in page.text or slug in page.text


def test_unknown_problem_type_has_no_page(client: httpx.Client) -> None:
    check_problem(client.get("/problems/nothing"), 404, "not_found")


def test_type_of_a_problem_leads_to_its_page(client: httpx.Client) -> None:
    problem = check_problem(client.get("/nothing"), 404, "not_found")
    page = client.get(problem["type"])
    assert page.status_code == 200
    assert problem["title"] in page.text


def test_equal_requests_get_equal_bodies(client: httpx.Client) -> None:
    one, other = post(client, EXAMPLE), post(client, EXAMPLE)
    assert one.content == other.content
