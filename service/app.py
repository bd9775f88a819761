"""The only place that wires the parts together."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import get_args

import numpy as np
import structlog
from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware

from . import __version__
from .api import cross_entropy, documentation, health, info
from .api.cross_entropy import CrossEntropy
from .api.health import Health
from .api.middleware.method_semantics import MethodSemantics
from .api.middleware.observation import Observation
from .api.middleware.problem_answers import ProblemAnswers
from .api.middleware.shortcut import Shortcut
from .api.negotiation import BodyLimits
from .dtypes import Array
from .engine.admission import Admission, Reason
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


def create_app(settings: Settings | None = None) -> FastAPI:
    """Builds the application; without settings, from the environment alone."""
    settings = settings or Settings()
    device = TorchDevice(settings.device, threads=settings.threads)
    metrics = Metrics(version=__version__, device=device.name, reasons=get_args(Reason), closers=get_args(ClosedBy))
    batch_elements = settings.max_batch_elements or _BATCH_ELEMENTS[device.device.type]
    batch_limits = BatchLimits(batch_elements, settings.max_batch_requests)
    batcher = Batcher(device, batch_limits, clock=time.monotonic, metrics=metrics)
    size_limits = SizeLimits(settings.max_classes, settings.max_elements)
    evaluator = Evaluator(batcher, size_limits, clock=time.monotonic)
    admission = Admission(settings.max_inflight_bytes, settings.max_queue_ms / 1e3, metrics)
    metrics.watch(batcher.__len__, lambda: admission.queue_s)
    state = Health(batcher)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        _announce(settings, device)
        batcher.start()
        await _warm_up(evaluator)
        state.is_warm = True
        yield
        del app
        state.is_draining = True
        await batcher.close()
        evaluator.close()
        device.close()

    app = FastAPI(
        title="losseval",
        version=__version__,
        summary="Cross-entropy, per-sample losses and gradients over HTTP.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.health = state
    body_limits = BodyLimits(settings.max_body_bytes, settings.max_json_bytes, settings.request_timeout)
    endpoint = CrossEntropy(evaluator, admission, body_limits, state)
    documentation.add_cross_entropy(app, endpoint)
    limits = _limits(settings, batch_limits)
    app.include_router(info.router(device=device.name, limits=limits, metrics=metrics))
    app.include_router(health.router(state))
    documentation.add_documentation(app)
    # Without the framework's own error handlers: whatever goes wrong becomes a problem document.
    framework = MethodSemantics(AsyncExitStackMiddleware(app.router))
    shortcut = Shortcut(framework, method="POST", path=cross_entropy.PATH, endpoint=endpoint)
    app.middleware_stack = Observation(ProblemAnswers(shortcut), metrics=metrics, health=state)
    return app


def _limits(settings: Settings, batch: BatchLimits) -> dict[str, int | float]:
    return {
        "max_body_bytes": settings.max_body_bytes,
        "max_json_bytes": settings.max_json_bytes,
        "max_classes": settings.max_classes,
        "max_elements": settings.max_elements,
        "max_batch_elements": batch.max_elements,
        "max_batch_requests": batch.max_requests,
        "max_inflight_bytes": settings.max_inflight_bytes,
        "max_queue_ms": settings.max_queue_ms,
        "request_timeout": settings.request_timeout,
    }


def _announce(settings: Settings, device: TorchDevice) -> None:
    ignored = ignored_variables(os.environ)
    if ignored:
        _log.warning("environment variables that set nothing here were ignored", names=ignored)
    _log.info("settings", **settings.model_dump(), resolved_device=device.name)


async def _warm_up(evaluator: Evaluator) -> None:
    """Runs one evaluation, so that the first caller doesn't pay for torch's lazy start."""
    arrays: dict[str, Array] = {"logits": np.zeros((2, 2), np.float32), "labels": np.zeros(2, np.int64)}
    options = LossOptions(include=("loss", "losses", "gradients"))
    await evaluator.evaluate(arrays, options, deadline=time.monotonic() + 60)
