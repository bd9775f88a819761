"""Everything that can be wrong with a request, or with the service at that moment.

    ServiceError
    ├── MalformedJson            the body is not JSON
    ├── MalformedTensors         the body is not a safetensors file
    ├── DuplicateField           a name stands twice
    ├── UnknownField             a name that does not belong
    ├── InvalidHeader            a header whose value can't be used
    ├── MalformedRequest         not HTTP
    ├── HeadersTooLarge          HTTP, but too many headers
    ├── MissingField             a required field is absent
    ├── InvalidValue             a wrong type or a value outside its range
    ├── NumberOutOfRange         a number its dtype cannot hold
    ├── UnsupportedDtype         a dtype that does not fit its field
    ├── ShapeMismatch            shapes that do not fit each other; ragged nesting
    ├── LabelOutOfRange          a class index outside the classes
    ├── LimitExceeded            larger than a configured limit
    ├── NotFound, MethodNotAllowed
    ├── NotAcceptable, UnsupportedMediaType, UnsupportedContentEncoding
    ├── RequestTimeout           the body came too slowly
    ├── DeadlineExceeded         no answer within the caller's time
    ├── InternalError            a bug in the service
    └── Unavailable              not now; try again
        ├── Overloaded, Draining, NotReady
        └── InsufficientDeviceMemory

An error carries data and writes its own message. Its code, part of the HTTP contract, is its name in snake case; its
title is its docstring. What it means in HTTP is decided in `api.problems` alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

MAX_FINDINGS = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One offending place: a JSON pointer in URI fragment form, and what is wrong there."""

    pointer: str
    detail: str


class ServiceError(Exception):
    """The root of the tree."""

    code: ClassVar[str]
    title: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        cls.title = (cls.__doc__ or "").split("\n")[0].removesuffix(".")

    def __init__(
        self, detail: str, *, errors: Sequence[Finding] = (), errors_omitted: int = 0, **data: float | str
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors[:MAX_FINDINGS])
        self.errors_omitted = errors_omitted + len(errors[MAX_FINDINGS:])
        self.data = data

    @classmethod
    def at(cls, pointer: str, detail: str) -> Self:
        """Builds the error for a single place in the request."""
        return cls(f"{pointer}: {detail}", errors=(Finding(pointer, detail),))


class MalformedJson(ServiceError):
    """The body is not valid JSON."""


class MalformedTensors(ServiceError):
    """The body is not a valid safetensors file."""


class MalformedRequest(ServiceError):
    """The bytes are not an HTTP request."""


class DuplicateField(ServiceError):
    """A name stands twice."""


class UnknownField(ServiceError):
    """A name does not belong here."""


class InvalidHeader(ServiceError):
    """A header's value cannot be used."""


class MissingField(ServiceError):
    """A required field is missing."""


class InvalidValue(ServiceError):
    """A value has the wrong type or is outside its range."""


class NumberOutOfRange(ServiceError):
    """A number does not fit its dtype."""


class UnsupportedDtype(ServiceError):
    """A dtype does not fit its field."""


class ShapeMismatch(ServiceError):
    """Shapes do not fit each other."""


class LabelOutOfRange(ServiceError):
    """A label is outside the class range."""


class LimitExceeded(ServiceError):
    """The request is larger than a limit of this service."""

    def __init__(self, limit_name: str, limit: int, actual: int, advice: str, *, rule: str = "") -> None:
        detail = f"{actual} exceeds {rule or limit_name} = {limit}. {advice}"
        super().__init__(detail, limit_name=limit_name, limit=limit, actual=actual)


class NotFound(ServiceError):
    """There is nothing at this path."""


class MethodNotAllowed(ServiceError):
    """The path does not take this method."""


class NotAcceptable(ServiceError):
    """No acceptable response type."""


class UnsupportedMediaType(ServiceError):
    """The body's media type is not supported."""


class UnsupportedContentEncoding(ServiceError):
    """The body's content encoding is not supported."""


class HeadersTooLarge(ServiceError):
    """The headers are larger than a limit of this service."""


class RequestTimeout(ServiceError):
    """The body came too slowly."""


class DeadlineExceeded(ServiceError):
    """The answer would have come too late."""


class InternalError(ServiceError):
    """The service failed."""


class Unavailable(ServiceError):
    """Nothing is wrong with the request: the same one may succeed after `retry_after_s`."""

    def __init__(self, detail: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Overloaded(Unavailable):
    """The service has as much work as it takes on."""


class Draining(Unavailable):
    """The service is shutting down."""


class NotReady(Unavailable):
    """The service is not ready."""


class InsufficientDeviceMemory(Unavailable):
    """The device has no memory left for this request."""
