"""The only place that wires the parts together."""

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
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
from .api.middleware.early_refusal import EarlyRefusal
from .api.middleware.method_semantics import MethodSemantics
from .api.middleware.metrics_listener import MetricsListener
from .api.middleware.observation import Observation
from .api.middleware.problem_answers import ProblemAnswers
from .api.middleware.shortcut import Shortcut
from .api.negotiation import BodyLimits
from .dtypes import Array
from .engine.admission import Admission, Reason, Wire
from .engine.batch_plan import BatchLimits, ClosedBy
from .engine.batcher import Batcher
from .engine.device import TINY_ELEMENTS, TorchDevice
from .engine.evaluator import Evaluator
from .engine.monitor import Monitor
from .loss.options import LossOptions
from .loss.validation import SizeLimits
from .settings import Settings, ignored_variables
from .telemetry.metrics import Metrics
from .telemetry.models import ModelsFile

_log = structlog.get_logger("losseval")
RELOAD_INTERVAL_S = 2.0
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
        ValueError: The device asked for is not there, or the models file is not good.
    """
    host.keep_freed_memory()
    settings = settings or Settings()
    device = TorchDevice(settings.device, threads=settings.threads)
    batch_elements = settings.max_batch_elements or _BATCH_ELEMENTS[device.device.type]
    settings = settings.model_copy(update={"device": device.name, "max_batch_elements": batch_elements})
    metrics = Metrics(
        version=__version__,
        commit=settings.commit,
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
    monitor = Monitor(device, metrics.models)
    files = [ModelsFile(settings.models_file, metrics.models)] if settings.models_file else []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        _announce(settings)
        batcher.start()
        await _warm_up(evaluator)
        # What was imported lives for ever; a full collection that walks it stops everything for a tenth of a second.
        gc.collect()
        gc.freeze()
        state.is_warm = True
        reloading = asyncio.create_task(_reload_regularly([one.refresh for one in files]), name="reload files")
        yield
        reloading.cancel()
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
    endpoint = CrossEntropy(
        evaluator,
        admission=admission,
        limits=body_limits,
        health=state,
        monitor=monitor,
        models=metrics.models,
    )
    framework = documentation.framework(lifespan)
    documentation.add_cross_entropy(framework, endpoint)
    limits = _limits(settings)
    framework.include_router(info.router(device=device.name, limits=limits, metrics=metrics, settle=monitor.settle))
    framework.include_router(health.router(state))
    # Without the framework's own error handlers: whatever goes wrong becomes a problem document.
    framework.middleware_stack = AsyncExitStackMiddleware(framework.router)
    slow_way = MethodSemantics(framework, routes=framework.routes)
    either_way = Shortcut(slow_way, method="POST", path=cross_entropy.PATH, endpoint=endpoint)
    every_way = MetricsListener(either_way, port=settings.metrics_port) if settings.metrics_port else either_way
    answers = ProblemAnswers(every_way, routes=framework.routes, metrics=metrics)
    observed = Observation(answers, metrics=metrics, health=state)
    layers = EarlyRefusal(
        observed, path=cross_entropy.PATH, admission=admission, limits=body_limits, metrics=metrics, health=state
    )
    return Application(layers, framework, state)


def _limits(settings: Settings) -> dict[str, int | float]:
    names = (name for name in Settings.model_fields if name.startswith("max_") or name == "request_timeout")
    return {name: getattr(settings, name) for name in names}


async def _reload_regularly(refreshes: Sequence[Callable[[], None]]) -> None:
    while refreshes:
        await asyncio.sleep(RELOAD_INTERVAL_S)
        for refresh in refreshes:
            refresh()


def _announce(settings: Settings) -> None:
    ignored = ignored_variables(os.environ)
    if ignored:
        _log.warning("environment variables that set nothing here were ignored", names=ignored)
    _log.info("settings", **settings.model_dump())


async def _warm_up(evaluator: Evaluator) -> None:
    """Runs evaluations, in the event loop's thread and in torch's, so that no caller pays for torch's lazy start."""
    options = LossOptions(include=("loss", "losses", "gradients"))
    for rows in (2, TINY_ELEMENTS):
        arrays: dict[str, Array] = {"logits": np.zeros((rows, 2), np.float32), "labels": np.zeros(rows, np.int64)}
        await evaluator.evaluate(arrays, options, deadline=time.monotonic() + 60)
