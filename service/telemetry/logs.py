"""Logs by structlog: text on a terminal, else one JSON object a line; the libraries' stdlib records join them."""

import logging
import sys
from datetime import UTC, datetime
from typing import Literal

import orjson
import structlog
from structlog.tracebacks import ExceptionDictTransformer

Format = Literal["text", "json"]


def configure(*, level: str, format: Format | None) -> None:  # noqa: A002 - the setting's own name
    """Sets up structlog and the root logger; without a format, text on a terminal and JSON elsewhere."""
    is_text = format == "text" or (format is None and sys.stdout.isatty())
    severity = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        _add_timestamp,
    ]
    structlog.configure(
        processors=[*shared, *_rendering(is_text=is_text)],
        wrapper_class=structlog.make_filtering_bound_logger(severity),
        logger_factory=structlog.PrintLoggerFactory() if is_text else structlog.BytesLoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(is_text=is_text),
                *([] if is_text else [_decode]),
            ],
        )
    )
    logging.basicConfig(level=max(severity, logging.INFO), handlers=[handler], force=True)


def _rendering(*, is_text: bool) -> list[structlog.typing.Processor]:
    if is_text:
        return [_shorten, structlog.dev.ConsoleRenderer(sort_keys=False, pad_event_to=0)]
    return [
        # Without locals: they hold headers, keys and tensors.
        structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False, max_frames=20)),
        structlog.processors.JSONRenderer(serializer=lambda event, **_: orjson.dumps(event, default=repr)),
    ]


def _add_timestamp(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    event["timestamp"] = datetime.now(UTC)  # orjson writes it as RFC 3339, faster than isoformat does
    return event


def _shorten(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Makes a request one line of a terminal; everything else about it is in the JSON format."""
    event["timestamp"] = event["timestamp"].astimezone().strftime("%H:%M:%S")
    if event["event"] != "request":
        return event
    text = "{method} {route} {status} in {duration_ms} ms".format_map(event)
    kept = ("timestamp", "level", "rows", "classes", "batch_requests", "code", "request_id")
    return {"event": text} | {name: event[name] for name in kept if name in event}


def _decode(_: object, __: str, line: object) -> str:
    return line.decode() if isinstance(line, bytes) else str(line)
