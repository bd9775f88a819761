"""`python -m service`: settings to server."""

import sys

from . import host, server
from .app import create_app
from .settings import load
from .telemetry import logs


def main() -> None:
    """Runs the service until it is told to stop."""
    settings = load(sys.argv[1:])
    host.keep_freed_memory()
    logs.configure(level=settings.log_level, format=settings.log_format)
    try:
        app = create_app(settings)
    except ValueError as error:
        sys.exit(f"losseval: {error}")
    server.build(app, settings).run()


if __name__ == "__main__":
    main()
