"""The command line: `losseval evaluate`, `losseval compare`, `losseval info`."""

import logging
import os
import sys
from collections.abc import Sequence

from ..errors import APIConnectionError

_STOPPED = 130
_UNREACHABLE = "Is the service running there (--url, LOSSEVAL_URL; else http://127.0.0.1:8000)? --local needs none."


class CommandError(Exception):
    """Ends a command: 1 something is wrong, 2 with the command line, 3 a threshold failed, 4 there is no service."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; of what goes wrong it says a line or two, on standard error."""
    logging.getLogger("losseval").addHandler(logging.NullHandler())  # else retries are printed
    try:
        from .app import app

        code = int(app(arguments, prog_name="losseval", standalone_mode=False) or 0)
    except ModuleNotFoundError as error:
        extra = "plot" if error.name == "matplotlib" else "cli"
        return _fail(f"this needs {error.name}: pip install 'losseval[{extra}]'")
    except APIConnectionError as error:
        return _fail(f"{error}\n{_UNREACHABLE}", 4)
    except Exception as error:  # noqa: BLE001 - a traceback helps nobody who only runs a command
        message = getattr(error, "format_message", error.__str__)()
        return _fail(message or repr(error), getattr(error, "exit_code", 1))
    if code == _STOPPED:  # at once: the end of the interpreter waits for requests under way
        if sys.stdout:  # None where it was closed
            sys.stdout.flush()
        os._exit(code)
    return code


def _fail(message: str, code: int = 1) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
