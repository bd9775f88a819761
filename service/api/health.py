"""Liveness and readiness."""

from dataclasses import dataclass, field

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from ..engine.batcher import Batcher


@dataclass(slots=True)
class Health:
    """The state of the process: alive while its batcher is, ready between warm-up and drain.

    `is_lost`: the device is, and only another process gets it back.
    """

    batcher: Batcher = field(repr=False)
    is_warm: bool = False
    is_draining: bool = False

    @property
    def is_alive(self) -> bool:
        """Whether the process should go on; independent of load."""
        return self.batcher.is_alive

    @property
    def computes(self) -> bool:
        """Whether evaluations are taken."""
        return self.is_warm and self.is_alive

    @property
    def is_lost(self) -> bool:
        """Whether the process should end by itself."""
        return self.batcher.is_lost

    @property
    def is_ready(self) -> bool:
        """Whether new requests should come here."""
        return self.computes and not self.is_draining


def router(health: Health) -> APIRouter:
    """Builds the routes of the two probes."""
    routes = APIRouter(tags=["operations"])

    @routes.get("/livez", summary="Is the process alive?", responses={503: {"description": "It should be restarted."}})
    async def livez() -> JSONResponse:
        return _probe("alive", is_good=health.is_alive)

    @routes.get("/readyz", summary="Should requests come here?", responses={503: {"description": "Not now."}})
    async def readyz() -> JSONResponse:
        return _probe("ready", is_good=health.is_ready)

    return routes


def _probe(name: str, *, is_good: bool) -> JSONResponse:
    return JSONResponse({"status": name if is_good else f"not {name}"}, 200 if is_good else 503)
