"""What is known of a request while it is answered; ends as one log line and a few metrics."""

import re
import uuid
from dataclasses import dataclass, field

from starlette.types import Scope

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True)
class RequestRecord:
    """Filled in as the request goes its way. Stages are in seconds, by the names of Server-Timing."""

    request_id: str
    started: float
    route: str = "other"
    wire: str | None = None
    rows: int | None = None
    classes: int | None = None
    received_bytes: int = 0
    sent_bytes: int = 0
    status: int = 0
    code: str | None = None
    batch_requests: int | None = None
    batch_rows: int | None = None
    stages: dict[str, float] = field(default_factory=dict)


def record_of(scope: Scope) -> RequestRecord:
    """Returns the record of the request being answered."""
    record: RequestRecord = scope["state"]["record"]
    return record


def header(scope: Scope, name: bytes) -> bytes | None:
    """Returns the first header of a lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def request_id_of(scope: Scope) -> str:
    """Returns the caller's X-Request-Id where it is well-formed, else a new one."""
    given = header(scope, b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode()
    return uuid.uuid4().hex
