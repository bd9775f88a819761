"""Everything that can be wrong with a request, or with the service at that moment.

    ServiceError
    ├── MalformedJson            the body is not JSON
    ├── DuplicateField           a name stands twice
    ├── UnknownField             a name that does not belong
    ├── InvalidHeader            a header whose value can't be used
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

An error carries data and writes its own message; what it means in HTTP is decided in `api.problems` alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

MAX_FINDINGS = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One offending place: a JSON pointer in URI fragment form, and what is wrong there."""

    pointer: str
    detail: str


class ServiceError(Exception):
    """The root of the tree; `code` is part of the HTTP contract."""

    code: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, detail: str, *, errors: Sequence[Finding] = (), errors_omitted: int = 0) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors[:MAX_FINDINGS])
        self.errors_omitted = errors_omitted + len(errors[MAX_FINDINGS:])

    @property
    def data(self) -> dict[str, object]:
        """Fields that belong to this kind of error alone."""
        return {}


class FieldError(ServiceError):
    """An error with a place in the request."""

    @classmethod
    def at(cls, pointer: str, detail: str) -> "FieldError":
        """Builds the error for a single place."""
        return cls(f"{pointer}: {detail}", errors=(Finding(pointer, detail),))


class MalformedJson(ServiceError):
    code = "malformed_json"
    title = "The body is not valid JSON"


class DuplicateField(FieldError):
    code = "duplicate_field"
    title = "A name stands twice"


class UnknownField(FieldError):
    code = "unknown_field"
    title = "A name does not belong here"


class InvalidHeader(ServiceError):
    code = "invalid_header"
    title = "A header's value cannot be used"


class MissingField(FieldError):
    code = "missing_field"
    title = "A required field is missing"


class InvalidValue(FieldError):
    code = "invalid_value"
    title = "A value has the wrong type or is outside its range"


class NumberOutOfRange(FieldError):
    code = "number_out_of_range"
    title = "A number does not fit its dtype"


class UnsupportedDtype(FieldError):
    code = "unsupported_dtype"
    title = "A dtype does not fit its field"


class ShapeMismatch(FieldError):
    code = "shape_mismatch"
    title = "Shapes do not fit each other"


class LabelOutOfRange(FieldError):
    code = "label_out_of_range"
    title = "A label is outside the class range"


class LimitExceeded(ServiceError):
    code = "limit_exceeded"
    title = "The request is larger than a limit of this service"

    def __init__(self, limit_name: str, limit: int, actual: int, advice: str) -> None:
        super().__init__(f"{actual} exceeds {limit_name} = {limit}. {advice}")
        self.limit_name = limit_name
        self.limit = limit
        self.actual = actual

    @property
    def data(self) -> dict[str, object]:
        return {"limit_name": self.limit_name, "limit": self.limit, "actual": self.actual}


class NotFound(ServiceError):
    code = "not_found"
    title = "There is nothing at this path"


class MethodNotAllowed(ServiceError):
    code = "method_not_allowed"
    title = "The path does not take this method"


class NotAcceptable(ServiceError):
    code = "not_acceptable"
    title = "No acceptable response type"


class UnsupportedMediaType(ServiceError):
    code = "unsupported_media_type"
    title = "The body's media type is not supported"


class UnsupportedContentEncoding(ServiceError):
    code = "unsupported_content_encoding"
    title = "The body's content encoding is not supported"


class MalformedRequest(ServiceError):
    code = "malformed_request"
    title = "The bytes are not an HTTP request"


class RequestTimeout(ServiceError):
    code = "request_timeout"
    title = "The body came too slowly"


class DeadlineExceeded(ServiceError):
    code = "deadline_exceeded"
    title = "The answer would have come too late"


class InternalError(ServiceError):
    code = "internal_error"
    title = "The service failed"

    def __init__(self) -> None:
        super().__init__("A bug in the service; the request id finds it in the log.")


class Unavailable(ServiceError):
    """Nothing is wrong with the request: the same one may succeed after `retry_after_s`."""

    def __init__(self, detail: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Overloaded(Unavailable):
    code = "overloaded"
    title = "The service has as much work as it takes on"

    def __init__(self, detail: str, *, reason: str, retry_after_s: float = 1.0) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
        self.reason = reason


class Draining(Unavailable):
    code = "draining"
    title = "The service is shutting down"


class NotReady(Unavailable):
    code = "not_ready"
    title = "The service is starting"


class InsufficientDeviceMemory(Unavailable):
    code = "insufficient_device_memory"
    title = "The device has no memory left for this request"
