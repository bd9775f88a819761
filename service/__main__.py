"""`python -m service`: settings to server."""

import os
import sys

import structlog

from . import server
from .app import create_app
from .settings import load
from .telemetry import logs


def main() -> None:
    """Runs the service until it is told to stop."""
    settings = load(sys.argv[1:])
    logs.configure(level=settings.log_level, format=settings.log_format)
    address = f"{settings.host}:{settings.port}"
    try:
        listener = server.bind(settings)
        app = create_app(settings)
    except OSError as error:
        sys.exit(f"losseval: can't listen on {address} (--host, --port): {error.strerror}")
    except ValueError as error:
        sys.exit(f"losseval: {error}")
    port = listener.getsockname()[1]
    structlog.get_logger("losseval").info("starting", url=f"http://{settings.host}:{port}")
    running = server.build(app, settings)
    running.run(sockets=[listener])
    if running.is_stuck or running.exit_status:
        # Not by way of Python's own end, which waits for threads that hang and for a CUDA that is lost.
        sys.stdout.flush()
        os._exit(running.exit_status)


if __name__ == "__main__":
    main()
