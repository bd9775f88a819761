"""`python -m service`: settings to server."""

import os
import sys

import structlog

from . import baseline, server
from .app import create_app
from .settings import load
from .telemetry import logs

COMMANDS = {"baseline": baseline.main}


def main() -> None:
    """Runs a subcommand, or the service until it is told to stop."""
    command = COMMANDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if command is not None:
        command(sys.argv[2:])
        return
    settings = load(sys.argv[1:])
    logs.configure(level=settings.log_level, format=settings.log_format)
    try:
        listeners = server.bind(settings)
        app = create_app(settings)
    except OSError as error:
        sys.exit(f"losseval: can't listen on {error.filename} (--host, --port, --metrics-port): {error.strerror}")
    except ValueError as error:
        sys.exit(f"losseval: {error}")
    port = listeners[0].getsockname()[1]
    structlog.get_logger("losseval").info("starting", url=f"http://{settings.host}:{port}")
    running = server.build(app, settings)
    running.run(sockets=listeners)
    if running.is_stuck or running.exit_status:
        # Not by way of Python's own end, which waits for threads that hang and for a CUDA that is lost.
        sys.stdout.flush()
        os._exit(running.exit_status)


if __name__ == "__main__":
    main()
