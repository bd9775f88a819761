"""The only place that wires the parts together."""

import gc
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import get_args

import numpy as np
import structlog
from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from . import __version__, host
from .api import cross_entropy, documentation, health, info
from .api.cross_entropy import CrossEntropy
from .api.health import Health
from .api.middleware.method_semantics import MethodSemantics
from .api.middleware.observation import Observation
from .api.middleware.problem_answers import ProblemAnswers
from .api.middleware.shortcut import Shortcut
from .api.negotiation import BodyLimits
from .dtypes import Array
from .engine.admission import Admission, Reason, Wire
from .engine.batch_plan import BatchLimits, ClosedBy
from .engine.batcher import Batcher
from .engine.device import TorchDevice
from .engine.evaluator import Evaluator
from .loss.options import LossOptions
from .loss.validation import SizeLimits
from .settings import Settings, ignored_variables
from .telemetry.metrics import Metrics

_log = structlog.get_logger("losseval")
_BATCH_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}


@dataclass(frozen=True, slots=True)
class Application:
    """The ASGI application: the middleware around the framework, and what the server needs to know."""

    layers: ASGIApp
    framework: FastAPI
    health: Health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        await self.layers(scope, receive, send)


def create_app(settings: Settings | None = None) -> Application:
    """Builds the application; without settings, from the environment alone.

    Raises:
        ValueError: The device asked for is not there.
    """
    host.keep_freed_memory()
    settings = settings or Settings()
    device = TorchDevice(settings.device, threads=settings.threads)
    batch_elements = settings.max_batch_elements or _BATCH_ELEMENTS[device.device.type]
    settings = settings.model_copy(update={"device": device.name, "max_batch_elements": batch_elements})
    metrics = Metrics(
        version=__version__,
        device=device.name,
        wires=get_args(Wire),
        reasons=get_args(Reason),
        closers=get_args(ClosedBy),
    )
    batch_limits = BatchLimits(batch_elements, settings.max_batch_requests)
    batcher = Batcher(device, batch_limits, clock=time.monotonic, metrics=metrics)
    evaluator = Evaluator(batcher, SizeLimits(settings.max_classes, settings.max_elements))
    admission = Admission(settings.max_inflight_bytes, settings.max_queue_ms / 1e3, metrics)
    metrics.watch(batcher.__len__, lambda: admission.queue_s)
    state = Health(batcher)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        _announce(settings)
        batcher.start()
        await _warm_up(evaluator)
        # What was imported lives for ever; a full collection that walks it stops everything for a tenth of a second.
        gc.collect()
        gc.freeze()
        state.is_warm = True
        yield
        state.is_draining = True
        await batcher.close()
        device.close()

    body_limits = BodyLimits(
        settings.max_body_bytes,
        settings.max_json_bytes,
        timeout_s=settings.request_timeout,
        grace_s=settings.body_grace,
        min_bytes_per_s=settings.min_bytes_per_s,
    )
    endpoint = CrossEntropy(evaluator, admission, body_limits, state)
    framework = documentation.framework(lifespan)
    documentation.add_cross_entropy(framework, endpoint)
    framework.include_router(info.router(device=device.name, limits=_limits(settings), metrics=metrics))
    framework.include_router(health.router(state))
    # Without the framework's own error handlers: whatever goes wrong becomes a problem document.
    framework.middleware_stack = AsyncExitStackMiddleware(framework.router)
    slow_way = MethodSemantics(framework, routes=framework.routes)
    either_way = Shortcut(slow_way, method="POST", path=cross_entropy.PATH, endpoint=endpoint)
    layers = Observation(ProblemAnswers(either_way, routes=framework.routes), metrics=metrics, health=state)
    return Application(layers, framework, state)


def _limits(settings: Settings) -> dict[str, int | float]:
    names = (name for name in Settings.model_fields if name.startswith("max_") or name == "request_timeout")
    return {name: getattr(settings, name) for name in names}


def _announce(settings: Settings) -> None:
    ignored = ignored_variables(os.environ)
    if ignored:
        _log.warning("environment variables that set nothing here were ignored", names=ignored)
    _log.info("settings", **settings.model_dump())


async def _warm_up(evaluator: Evaluator) -> None:
    """Runs one evaluation, so that the first caller doesn't pay for torch's lazy start."""
    arrays: dict[str, Array] = {"logits": np.zeros((2, 2), np.float32), "labels": np.zeros(2, np.int64)}
    options = LossOptions(include=("loss", "losses", "gradients"))
    await evaluator.evaluate(arrays, options, deadline=time.monotonic() + 60)
