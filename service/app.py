"""The only place that wires the parts together."""

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import structlog
from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from . import __version__, host
from .api import cross_entropy, documentation, health, info
from .api.cross_entropy import CrossEntropy
from .api.early_refusal import EarlyRefusal
from .api.health import Health
from .api.middleware.authentication import Authentication
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
from .keys import KeyRing
from .loss.options import LossOptions
from .loss.validation import SizeLimits
from .settings import Settings, ignored_variables
from .telemetry import models
from .telemetry.metrics import Metrics

if TYPE_CHECKING:
    from .telemetry.traces import Traces

_log = structlog.get_logger("losseval")
_LOOK_EVERY_S = 2.0
_COLLECTORS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_BATCH_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}


@dataclass(frozen=True, slots=True)
class Application:
    """The ASGI application: the middleware around the framework, and what the server needs to know."""

    layers: ASGIApp
    framework: FastAPI
    health: Health
    early_refusal: EarlyRefusal | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        await self.layers(scope, receive, send)


def create_app(settings: Settings | None = None) -> Application:
    """Builds the application; without settings, from the environment alone.

    Raises:
        ValueError: The device asked for is not there, or a file is not good.
    """
    host.keep_freed_memory()
    settings = settings or Settings()
    keys = KeyRing(settings.keys_file) if settings.keys_file else None
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
    batcher = Batcher(
        device, BatchLimits(batch_elements, settings.max_batch_requests), clock=time.monotonic, metrics=metrics
    )
    evaluator = Evaluator(batcher, SizeLimits(settings.max_classes, settings.max_elements))
    admission = Admission(settings.max_inflight_bytes, settings.max_queue_ms / 1e3, metrics)
    metrics.authentication.set(keys is not None)
    metrics.watch(batcher.__len__, lambda: admission.waiting_s)
    state = Health(batcher)
    monitor = Monitor(device, metrics.models)
    declared = models.follow(settings.models_file, metrics.models.declare) if settings.models_file else None
    files = [one for one in (keys, declared) if one is not None]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        _announce(settings)
        batcher.start()
        await _warm_up(Evaluator(batcher, SizeLimits()))
        # What was imported lives for ever; a full collection that walks it stops everything for a tenth of a second.
        gc.collect()
        gc.freeze()
        state.is_warm = True
        looking = asyncio.create_task(_follow_files([one.refresh for one in files]), name="watched files")
        yield
        looking.cancel()
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
    traces = _traces()
    framework = documentation.framework(lifespan, traced_by=traces.provider if traces else None)
    documentation.add_cross_entropy(framework, endpoint, needs_key=keys is not None)
    framework.include_router(
        info.router(device=device.name, limits=_limits(settings), metrics=metrics, settle=monitor.settle)
    )
    framework.include_router(health.router(state))
    # Without the framework's own error handlers: whatever goes wrong becomes a problem document.
    framework.middleware_stack = AsyncExitStackMiddleware(framework.router)
    layers = _layers(framework, endpoint, settings, keys, metrics, state, traces)
    if settings.cors_origins:  # pages couldn't read its answers
        return Application(layers, framework, state)
    early_refusal = EarlyRefusal(
        cross_entropy.PATH,
        keys=keys,
        admission=admission,
        limits=body_limits,
        ignored_bytes=settings.linger_bytes,
        metrics=metrics,
        health=state,
    )
    return Application(layers, framework, state, early_refusal)


def _layers(  # noqa: PLR0913, PLR0917 - what they are made of
    framework: FastAPI,
    endpoint: CrossEntropy,
    settings: Settings,
    keys: KeyRing | None,
    metrics: Metrics,
    state: Health,
    traces: "Traces | None",
) -> ASGIApp:
    """Puts the middleware around the framework, the innermost first."""
    layers: ASGIApp = MethodSemantics(framework, routes=framework.routes)
    layers = Shortcut(layers, method="POST", path=cross_entropy.PATH, endpoint=endpoint)
    if keys is not None:
        layers = Authentication(layers, keys=keys, routes=framework.routes)
    if settings.metrics_port is not None:
        layers = MetricsListener(layers, port=settings.metrics_port)
    layers = ProblemAnswers(layers, routes=framework.routes, metrics=metrics)
    if settings.cors_origins:  # around the problems: pages may read them too
        layers = _with_cors(layers, settings.cors_origins)
    return Observation(layers, metrics=metrics, health=state, trace=traces.request if traces else None)


def _with_cors(app: ASGIApp, origins: str) -> ASGIApp:
    """Lets pages of these origins call; never with cookies, of which there are none."""
    return CORSMiddleware(
        app,
        allow_origins=[origin.strip() for origin in origins.split(",")],
        allow_methods=["GET", "HEAD", "POST"],
        allow_headers=["Authorization", "X-API-Key", "X-Request-Id", "X-Request-Timeout", "Traceparent"],
        expose_headers=["Retry-After", "Server-Timing", "X-Request-Id", "X-Service-Version"],
    )


async def _follow_files(refresh: Sequence[Callable[[], None]]) -> None:
    """Looks for ever whether watched files have changed."""
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        for one in refresh:
            try:
                one()
            except Exception:  # noqa: BLE001 - a bug with one file must not stop the others from being followed
                _log.exception("a watched file can't be followed")


def _traces() -> "Traces | None":
    """Traces go where the operator says; where nothing is said, there are none."""
    if not any(map(os.environ.get, _COLLECTORS)):
        return None
    try:
        from .telemetry.traces import Traces  # noqa: PLC0415 - needs what may not be installed
    except ImportError as error:
        missing = "opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
        _log.warning(f"no traces: the extra otel is missing; pip install {missing}", error=str(error))
        return None
    return Traces(clock=time.monotonic)


def _limits(settings: Settings) -> dict[str, int | float]:
    names = (name for name in Settings.model_fields if name.startswith("max_") or name == "request_timeout")
    return {name: getattr(settings, name) for name in names}


def _announce(settings: Settings) -> None:
    ignored = ignored_variables(os.environ)
    if ignored:
        _log.warning("environment variables that set nothing here were ignored", names=ignored)
    if settings.keys_file is None and not settings.is_loopback:
        _log.warning("anyone who reaches the address may compute: there is no --keys-file", host=settings.host)
    _log.info("settings", **settings.model_dump(mode="json"))


async def _warm_up(evaluator: Evaluator) -> None:
    """Runs evaluations, in the event loop's thread and in torch's, so that no caller pays for torch's lazy start."""
    options = LossOptions(include=("loss", "losses", "gradients"))
    for rows in (2, TINY_ELEMENTS):
        arrays: dict[str, Array] = {"logits": np.zeros((rows, 2), np.float32), "labels": np.zeros(rows, np.int64)}
        await evaluator.evaluate(arrays, options, deadline=time.monotonic() + 60)
