"""Everything that can go wrong between a call and its result.

    LossevalError
    ├── APIConnectionError            nobody answered
    │   ├── APITimeoutError           not within the time budget
    │   └── APIResponseError          something answered, but not the service
    └── APIStatusError                a refusal, by the service or by something before it
        ├── BadRequestError           400    ├── LimitExceededError          413
        ├── AuthenticationError       401    ├── UnsupportedMediaTypeError   415
        ├── NotFoundError             404    ├── UnprocessableError          422
        ├── MethodNotAllowedError     405    ├── HeadersTooLargeError        431
        ├── NotAcceptableError        406    ├── InternalServerError         500
        └── RequestTimeoutError       408    ├── ServiceUnavailableError     503
                                             └── DeadlineExceededError       504
All can be pickled; none holds a tensor or a key.
"""

import json
from collections.abc import Mapping
from typing import Any, ClassVar


class LossevalError(Exception):
    """The root of the tree."""


class APIConnectionError(LossevalError):
    """Nobody answered; `request_id` is what the service may have it in its log under."""

    def __init__(self, reason: str, request_id: str) -> None:
        super().__init__(reason, request_id)
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.args[0]} (request {self.request_id})"


class APITimeoutError(APIConnectionError):
    """Nobody answered within the time budget."""


class APIResponseError(APIConnectionError):
    """Something answered with success, but not the service: a proxy's page, or a body cut short."""


class APIStatusError(LossevalError):
    """A refusal: `problem` is its document (RFC 9457) or, where none came, the start of what did as `detail`."""

    _by_status: ClassVar[dict[int, type["APIStatusError"]]] = {}

    def __init_subclass__(cls, *, status: int) -> None:
        cls._by_status[status] = cls

    def __init__(self, status_code: int, problem: Mapping[str, Any], request_id: str) -> None:
        super().__init__(status_code, problem, request_id)
        self.status_code, self.problem, self.request_id = status_code, problem, request_id

    @classmethod
    def of(cls, status_code: int, body: bytes | bytearray, request_id: str) -> "APIStatusError":
        """Builds the error of a refusal, whatever its body is."""
        try:
            problem = json.loads(body)
        except (ValueError, RecursionError):
            problem = None
        if not isinstance(problem, dict):
            problem = {"detail": body[:200].decode("utf-8", "replace")}
        return cls._by_status.get(status_code, cls)(status_code, problem, request_id)

    @property
    def code(self) -> str:
        """What is wrong, as the contract names it, e.g. ``label_out_of_range``; empty without a problem document."""
        return str(self.problem.get("code", ""))

    def __str__(self) -> str:
        return f"{self.status_code} {self.code}: {self.problem.get('detail')} (request {self.request_id})"


class BadRequestError(APIStatusError, status=400):
    """The request can't be parsed, or holds a name that does not belong."""


class AuthenticationError(APIStatusError, status=401):
    """The service wants a key, and got none or a wrong one."""


class NotFoundError(APIStatusError, status=404):
    """There is nothing at this path: is the base URL right?"""


class MethodNotAllowedError(APIStatusError, status=405):
    """The path does not take this method."""


class NotAcceptableError(APIStatusError, status=406):
    """The service can't answer in this format."""


class RequestTimeoutError(APIStatusError, status=408):
    """The body came too slowly."""


class LimitExceededError(APIStatusError, status=413):
    """The request is larger than a limit: `problem` holds `limit_name`, `limit` and `actual`."""


class UnsupportedMediaTypeError(APIStatusError, status=415):
    """The service does not read this format."""


class UnprocessableError(APIStatusError, status=422):
    """The values are wrong: a shape, a dtype, a label, an option; `problem["errors"]` says where."""


class HeadersTooLargeError(APIStatusError, status=431):
    """The headers are too large."""


class InternalServerError(APIStatusError, status=500):
    """A bug in the service; report it with the request id."""


class ServiceUnavailableError(APIStatusError, status=503):
    """Not now: overloaded, starting, shutting down, or out of device memory."""


class DeadlineExceededError(APIStatusError, status=504):
    """The service saw that its answer would come too late."""
