"""The client of the losseval service: cross-entropy, per-sample losses and gradients over HTTP.

`Client`, `AsyncClient`, what they return and, in `losseval.errors`, raise. `losseval.torch` is imported by itself.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import errors
    from .async_client import AsyncClient
    from .client import Client
    from .comparison import Comparison, compare
    from .errors import APIConnectionError, APIStatusError, APITimeoutError, LossevalError
    from .results import CrossEntropyResult

_ERRORS = ("APIConnectionError", "APIStatusError", "APITimeoutError", "LossevalError")
__all__ = ["AsyncClient", "Client", "Comparison", "CrossEntropyResult", "compare", "errors", *_ERRORS]

_MODULES = {"AsyncClient": "async_client", "Client": "client", "Comparison": "comparison", "compare": "comparison"}
_MODULES |= {"CrossEntropyResult": "results", **dict.fromkeys(_ERRORS, "errors")}


def __getattr__(name: str) -> object:
    """Imports what is named, and numpy with it, when it is first named: the command line's help needs neither."""
    if name == "errors":
        return importlib.import_module(".errors", __name__)
    if name not in _MODULES:
        raise AttributeError(f"module 'losseval' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
