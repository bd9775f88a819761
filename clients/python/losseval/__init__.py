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

__all__ = ["APIConnectionError", "APIStatusError", "APITimeoutError", "AsyncClient", "Client", "Comparison"]
__all__ += ["CrossEntropyResult", "LossevalError", "compare", "errors"]

_MODULES = {"AsyncClient": "async_client", "Client": "client", "CrossEntropyResult": "results"}
_MODULES |= dict.fromkeys(("Comparison", "compare"), "comparison")


def __getattr__(name: str) -> object:
    """Imports what is named, and numpy with it, when it is first named: the command line's help needs neither."""
    if name not in __all__:
        raise AttributeError(f"module 'losseval' has no attribute {name!r}")
    module = importlib.import_module("." + _MODULES.get(name, "errors"), __name__)
    return module if name == "errors" else getattr(module, name)
