"""Everything that can go wrong between a call and its result. All can be pickled; none holds a tensor or a key.

LossevalError
├── APIConnectionError            nobody answered
│   ├── APITimeoutError           not within the time budget
│   └── APIResponseError          something answered, but not the service: a proxy's page, a body cut short
└── APIStatusError                a refusal, by the service or by something before it
    ├── BadRequestError           400    ├── LimitExceededError          413: problem has limit_name, limit, actual
    ├── AuthenticationError       401    ├── UnsupportedMediaTypeError   415
    ├── NotFoundError             404    ├── UnprocessableError          422: problem["errors"] says where
    ├── MethodNotAllowedError     405    ├── HeadersTooLargeError        431
    ├── NotAcceptableError        406    ├── InternalServerError         500: a bug in the service
    ├── RequestTimeoutError       408    ├── ServiceUnavailableError     503: not now
    └── DeadlineExceededError     504: the service saw that it would be too late
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


class APITimeoutError(APIConnectionError): ...


class APIResponseError(APIConnectionError): ...


class APIStatusError(LossevalError):
    """A refusal: `problem` is its document (RFC 9457) or, where none came, the start of what did as `detail`."""

    _by_status: ClassVar[dict[int, type["APIStatusError"]]] = {}

    def __init_subclass__(cls, *, status: int) -> None:
        cls._by_status[status] = cls

    def __init__(self, status_code: int, problem: Mapping[str, Any], request_id: str) -> None:
        super().__init__(status_code, problem, request_id)
        self.status_code, self.problem, self.request_id = status_code, problem, request_id
        self.code = str(problem.get("code", ""))

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

    def __str__(self) -> str:
        return f"{self.status_code} {self.code}: {self.problem.get('detail')} (request {self.request_id})"


class BadRequestError(APIStatusError, status=400): ...


class AuthenticationError(APIStatusError, status=401): ...


class NotFoundError(APIStatusError, status=404): ...


class MethodNotAllowedError(APIStatusError, status=405): ...


class NotAcceptableError(APIStatusError, status=406): ...


class RequestTimeoutError(APIStatusError, status=408): ...


class LimitExceededError(APIStatusError, status=413): ...


class UnsupportedMediaTypeError(APIStatusError, status=415): ...


class UnprocessableError(APIStatusError, status=422): ...


class HeadersTooLargeError(APIStatusError, status=431): ...


class InternalServerError(APIStatusError, status=500): ...


class ServiceUnavailableError(APIStatusError, status=503): ...


class DeadlineExceededError(APIStatusError, status=504): ...
