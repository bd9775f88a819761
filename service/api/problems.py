"""Errors as RFC 9457 problem documents; one table maps every error to its status, and documents it too."""

import uuid
from dataclasses import dataclass
from http import HTTPStatus

import orjson
from starlette.exceptions import HTTPException
from starlette.types import Send

from .. import errors
from ..errors import ServiceError

MEDIA_TYPE = "application/problem+json"
MAX_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ProblemType:
    """What an error means in HTTP, and what its page says."""

    status: int
    advice: str


PROBLEMS: dict[type[ServiceError], ProblemType] = {
    errors.MalformedJson: ProblemType(400, "Send UTF-8 JSON; the detail says where reading stopped."),
    errors.MalformedTensors: ProblemType(400, "Write it with a safetensors library; the detail says what is wrong."),
    errors.DuplicateField: ProblemType(400, "Leave one of the two out: which was meant can't be known."),
    errors.UnknownField: ProblemType(400, "Check the spelling; a misspelt option must not silently change a number."),
    errors.InvalidHeader: ProblemType(400, "Correct the header the detail names, or leave it out."),
    errors.MalformedRequest: ProblemType(400, "Speak HTTP/1.1; bad framing and bad header lines end up here."),
    errors.NotFound: ProblemType(404, "See /docs for what there is."),
    errors.MethodNotAllowed: ProblemType(405, "The Allow header lists the methods this path takes."),
    errors.NotAcceptable: ProblemType(406, "Leave Accept out, or let it include a type the detail lists."),
    errors.RequestTimeout: ProblemType(408, "Send the body faster; the detail says how fast."),
    errors.LimitExceeded: ProblemType(
        413, "Split the batch: with reduction=sum, loss_sum and normalizer of the parts add up to the whole."
    ),
    errors.UnsupportedMediaType: ProblemType(415, "Send Content-Type: application/json or application/x-safetensors."),
    errors.UnsupportedContentEncoding: ProblemType(415, "Send the body as it is, without Content-Encoding."),
    errors.MissingField: ProblemType(422, "Add the field; logits and labels are always required."),
    errors.InvalidValue: ProblemType(422, "Correct the value each pointer names."),
    errors.NumberOutOfRange: ProblemType(
        422,
        "Nested logits are float32. A tensor object of dtype F64 holds larger numbers, precision=high computes them.",
    ),
    errors.UnsupportedDtype: ProblemType(422, "Cast the tensor to one of the dtypes the detail lists."),
    errors.ShapeMismatch: ProblemType(
        422, "Nothing is broadcast. Classes are axis 1, as in PyTorch, unless class_axis is -1."
    ),
    errors.LabelOutOfRange: ProblemType(422, "Labels count from 0; a label equal to ignore_index is left out."),
    errors.HeadersTooLarge: ProblemType(431, "Send fewer or shorter headers."),
    errors.InternalError: ProblemType(500, "Report it with the request id."),
    errors.Overloaded: ProblemType(503, "Try again after the seconds of Retry-After; nothing was computed."),
    errors.Draining: ProblemType(503, "Try again: this replica is going, another takes over."),
    errors.NotReady: ProblemType(503, "Wait until /readyz answers 200."),
    errors.InsufficientDeviceMemory: ProblemType(503, "Split the batch, or use a device with more memory."),
    errors.DeadlineExceeded: ProblemType(504, "Allow more time in X-Request-Timeout, or send less at once."),
}


def slug_of(kind: type[ServiceError]) -> str:
    """Returns the last part of the problem's type URI."""
    return kind.code.replace("_", "-")


BY_SLUG = {slug_of(kind): kind for kind in PROBLEMS}


def status_of(error: ServiceError) -> int:
    """Returns the error's HTTP status."""
    return PROBLEMS[type(error)].status


def document(error: ServiceError, request_id: str) -> bytes:
    """Writes the problem document, at most 4 KiB; findings that don't fit are counted."""
    findings = [{"pointer": finding.pointer, "detail": finding.detail} for finding in error.errors]
    omitted = error.errors_omitted
    while True:
        body = orjson.dumps(
            {
                "type": f"/problems/{slug_of(type(error))}",
                "title": error.title,
                "status": status_of(error),
                "code": error.code,
                "detail": error.detail[:1024],
                "instance": f"urn:uuid:{uuid.uuid4()}",
                "request_id": request_id,
                **({"errors": findings, "errors_omitted": omitted} if findings or omitted else {}),
                **error.data,
            }
        )
        if len(body) <= MAX_BYTES or not findings:
            return body
        findings.pop()
        omitted += 1


def answer(error: ServiceError, request_id: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Returns the headers and the body of the response to an error."""
    body = document(error, request_id)
    headers = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    if isinstance(error, errors.Unavailable):
        headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
    return headers, body


async def send_problem(send: Send, error: ServiceError, request_id: str, *, allow: str = "") -> None:
    """Sends an error as the whole response."""
    headers, body = answer(error, request_id)
    if allow:
        headers.append((b"allow", allow.encode()))
    await send({"type": "http.response.start", "status": status_of(error), "headers": headers})
    await send({"type": "http.response.body", "body": body})


def from_framework(error: HTTPException, path: str) -> ServiceError:
    """Translates what the router raises."""
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return errors.MethodNotAllowed("The Allow header lists the methods this path takes.")
    if error.status_code == HTTPStatus.NOT_FOUND:
        return errors.NotFound(f"There is nothing at {path[:128]!r}; /docs lists what there is.")
    return errors.InternalError("The request id finds what happened in the log.")
