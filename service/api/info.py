"""What this service is and can do, its metrics, and a page for each error."""

import html
import platform
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, get_args

import torch
from fastapi import APIRouter, Path, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel

from .. import __version__
from ..dtypes import BY_NAME, FLOATS, WEIGHTS
from ..errors import NotFound
from ..loss.options import OUTPUTS, Precision, Reduction
from ..telemetry.metrics import Metrics
from . import negotiation, problems


class Info(BaseModel):
    """The service and its limits."""

    name: str = "losseval"
    version: str = __version__
    torch: str = str(torch.__version__)
    python: str = platform.python_version()
    device: str
    limits: dict[str, int | float]
    media_types: dict[str, list[str]] = {"request": list(negotiation.WIRES), "response": list(negotiation.WIRES)}
    dtypes: dict[str, list[str]] = {"logits": list(FLOATS), "labels": list(BY_NAME), "weights": list(WEIGHTS)}
    include: list[str] = list(OUTPUTS)
    reduction: list[str] = list(get_args(Reduction))
    precision: list[str] = list(get_args(Precision))


def router(
    *, device: str, limits: Mapping[str, int | float], metrics: Metrics, settle: Callable[[], Awaitable[None]]
) -> APIRouter:
    """Builds the informative routes; `settle` counts what is not in the metrics yet."""
    routes = APIRouter()
    info = Info(device=device, limits=dict(limits))

    @routes.get("/v1/info", tags=["cross-entropy"], summary="Version, device, limits, what include may hold")
    async def get_info() -> Info:
        return info

    @routes.get("/metrics", tags=["operations"], summary="Prometheus metrics", response_class=Response)
    async def get_metrics(request: Request) -> Response:
        await settle()
        body, media_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": media_type})

    @routes.get("/problems/{slug}", tags=["operations"], summary="What an error means", response_class=HTMLResponse)
    async def get_problem(
        slug: Annotated[str, Path(json_schema_extra={"enum": sorted(problems.BY_SLUG)})],
    ) -> HTMLResponse:
        kind = problems.BY_SLUG.get(slug)
        if kind is None:
            detail = f"There is no error called {slug[:64]!r}; there are {', '.join(sorted(problems.BY_SLUG))}."
            raise NotFound(detail)
        entry = problems.PROBLEMS[kind]
        text = f"<h1>{html.escape(kind.title)}</h1><p>Status {entry.status}, code <code>{kind.code}</code>.</p>"
        return HTMLResponse(_PAGE.format(title=slug, body=f"{text}<p>{html.escape(entry.advice)}</p>"))

    return routes


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>losseval: {title}</title></head>
<body>{body}<p><a href="/docs">API documentation</a></p></body></html>
"""
