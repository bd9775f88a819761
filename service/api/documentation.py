"""The OpenAPI document, and Swagger UI from this package: no request leaves the host."""

import json
import mimetypes
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import RedirectResponse, Response
from fastapi.routing import APIRoute
from fastapi.telemetry import TelemetryConfig
from opentelemetry.trace import TracerProvider
from starlette.types import ASGIApp, Lifespan

from .. import __version__
from ..errors import NotFound
from . import cross_entropy
from .negotiation import JSON, OCTETS, SAFETENSORS
from .problems import MEDIA_TYPE, PROBLEMS
from .query import PARAMETERS
from .schemas import CrossEntropyRequest, CrossEntropyResponse, Options, Origin, Problem

_STATIC = Path(__file__).parent / "static"
_ASSETS = frozenset(path.name for path in _STATIC.iterdir())
EXAMPLES = json.loads((_STATIC / "examples.json").read_bytes())


def framework(lifespan: Lifespan[FastAPI], *, traced_by: TracerProvider | None = None) -> FastAPI:
    """Builds the FastAPI application that serves `/docs`, `/openapi.json` and the redirect from `/`.

    Args:
        lifespan: What is to happen at start and end.
        traced_by: Is given an exporter as the OTEL_… variables say. FastAPI makes no spans: it sees few requests.
    """
    telemetry = TelemetryConfig(
        tracer_provider=traced_by,
        auto_configure=traced_by is not None,
        metrics=False,
        logs=False,
        exclude=lambda _: True,
    )
    app = FastAPI(
        title="losseval",
        version=__version__,
        summary="Cross-entropy, per-sample losses and gradients over HTTP.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        telemetry=telemetry,
    )
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(generate())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return _asset("docs.html")

    @app.get("/docs/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        return _asset(name)

    return app


def _asset(name: str) -> Response:
    """Returns a file of the package; whole, since browsers ask for no ranges of pages."""
    if name not in _ASSETS:
        raise NotFound(f"There is nothing at '/docs/{name[:64]}'.")
    media_type = mimetypes.guess_type(name)[0]
    return Response((_STATIC / name).read_bytes(), media_type=media_type)


_BINARY = (
    "JSON, or a safetensors file with the tensors logits and labels and optionally weight, sample_weight and "
    "grad_output, whose options are query parameters."
)


_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def add_cross_entropy(app: FastAPI, endpoint: ASGIApp, *, needs_key: bool) -> None:
    """Adds the operation with its documentation."""

    async def documented() -> None:
        """Cross-entropy of logits and labels, with per-sample losses, gradients and diagnostics."""

    reference = {"$ref": "#/components/schemas/CrossEntropyRequest"}
    content: dict[str, Any] = {JSON: {"schema": reference, "examples": EXAMPLES}, SAFETENSORS: {}, OCTETS: {}}
    answers: dict[int | str, dict[str, Any]] = {200: {"content": {SAFETENSORS: {}, OCTETS: {}}}}
    route = APIRoute(
        cross_entropy.PATH,
        documented,
        methods=["POST"],
        operation_id="cross_entropy",
        summary="Cross-entropy",
        tags=["cross-entropy"],
        response_model=CrossEntropyResponse,
        responses=answers | problem_responses(),
        openapi_extra={
            "requestBody": {"required": True, "content": content, "description": _BINARY},
            "parameters": _query_parameters(),
            **({"security": [{name: []} for name in _KEYS]} if needs_key else {}),
        },
    )
    route.app = endpoint  # without FastAPI's request handling
    app.router.routes.append(route)


def _query_parameters() -> list[dict[str, Any]]:
    """Returns OpenAPI's parameters for the options of a binary request."""
    number = {"type": "number", "description": "Upstream gradient, a number; an array of them is a tensor of the body."}
    options = Options.model_json_schema()["properties"] | Origin.model_json_schema()["properties"]
    fields = options | {"grad_output": number}
    for schema in fields.values():  # a parameter is left out, never null
        schema.update(next((kind for kind in schema.pop("anyOf", ()) if kind != {"type": "null"}), {}))
    return [
        {
            "name": name,
            "in": "query",
            "description": f"Binary requests only. {fields[name].pop('description')}",
            "schema": fields[name],
            **({"style": "form", "explode": False} if name == "include" else {}),
        }
        for name in fields
        if name in PARAMETERS
    ]


def problem_responses() -> dict[int | str, dict[str, Any]]:
    """Returns OpenAPI's responses for every status of the table of problems."""
    codes: Mapping[int, list[str]] = defaultdict(list)
    for kind, entry in PROBLEMS.items():
        codes[entry.status].append(kind.code)
    return {
        status: {
            "description": ", ".join(sorted(names)),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, names in sorted(codes.items())
    }


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    """Moves the schemas of hand-written parts to where OpenAPI keeps them."""
    components = document.setdefault("components", {})
    components["securitySchemes"] = _KEYS
    schemas = components.setdefault("schemas", {})
    template = "#/components/schemas/{model}"
    for model in (CrossEntropyRequest, Problem):
        schema = model.model_json_schema(ref_template=template)
        schemas |= schema.pop("$defs", {}) | {model.__name__: schema}
    for path in document["paths"].values():
        for method in path.values():
            default = {
                "description": "Any error.",
                "content": {MEDIA_TYPE: {"schema": {"$ref": template.format(model="Problem")}}},
            }
            method["responses"].setdefault("default", default)
            if "HTTPValidationError" in str(method["responses"].get("422")):  # FastAPI's own, which never leaves here
                del method["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return document
