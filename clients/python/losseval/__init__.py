"""The client of the losseval service: cross-entropy, per-sample losses and gradients over HTTP.

`Client`, `AsyncClient`, what they return and, in `losseval.errors`, raise. `losseval.torch` is imported by itself.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

from . import errors
from .client import Client
from .comparison import Comparison, compare
from .errors import APIConnectionError, APIStatusError, APITimeoutError, LossevalError
from .results import CrossEntropyResult

if TYPE_CHECKING:
    from .async_client import AsyncClient

__all__ = ["APIConnectionError", "APIStatusError", "APITimeoutError", "AsyncClient", "Client", "Comparison"]
__all__ += ["CrossEntropyResult", "LossevalError", "compare", "errors"]


def __getattr__(name: str) -> object:
    """Imports the asynchronous client, and asyncio and httpx with it, when it is first named."""
    if name != "AsyncClient":
        raise AttributeError(f"module 'losseval' has no attribute {name!r}")
    from .async_client import AsyncClient  # noqa: PLC0415 - as said

    return AsyncClient
