"""`python -m service`: settings to server."""

import os
import sys
from collections.abc import Callable, Sequence

import structlog

from . import baseline, keys, server
from .app import create_app
from .settings import load
from .telemetry import logs

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"baseline": baseline.main, "keys": keys.main}
"""What runs instead of the service; `--help` names each."""


def main() -> None:
    """Runs a command, or the service until it is told to stop."""
    name, *arguments = sys.argv[1:] or [""]
    if name in COMMANDS:
        COMMANDS[name](arguments)
        return
    settings = load(sys.argv[1:])
    logs.configure(level=settings.log_level, format=settings.log_format)
    try:
        listeners = server.bind(settings)
        running = server.build(create_app(settings), settings)
    except OSError as error:
        sys.exit(f"losseval: can't listen on {error.filename} (--host, --port, --metrics-port): {error.strerror}")
    except ValueError as error:
        sys.exit(f"losseval: {error}")
    port = listeners[0].getsockname()[1]
    scheme = "https" if settings.ssl_certfile else "http"
    structlog.get_logger("losseval").info("starting", url=f"{scheme}://{settings.host}:{port}")
    running.run(sockets=listeners)
    if running.is_stuck or running.exit_status:
        # Not by way of Python's own end, which waits for threads that hang and for a CUDA that is lost.
        sys.stdout.flush()
        os._exit(running.exit_status)


if __name__ == "__main__":
    main()
