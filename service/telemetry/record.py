"""What is known of a request while it is answered; ends as one log line and a few metrics."""

from dataclasses import dataclass, field
from typing import Literal

GONE = 499
"""nginx's status for a caller that left; nobody sees it but the log and the metrics."""


@dataclass(slots=True)
class RequestRecord:
    """Filled in as the request goes its way; stages by the names of Server-Timing, rounded to microseconds."""

    request_id: str
    method: str
    started: float
    route: str = "other"
    is_named: bool = False
    """Whether the caller chose the request id: then a second request of that id is a retry."""
    trace_id: str | None = None
    holds_back_body: bool = False
    """Whether the caller waits for a 100 before it sends the body: until then, an answer must end the connection."""
    status: int = GONE
    code: str | None = None
    received_bytes: int = 0
    sent_bytes: int = 0
    duration_s: float = 0.0
    wire: str | None = None
    gone_in: Literal["body", "evaluation"] | None = None
    rows: int = 0
    classes: int = 0
    batch_requests: int = 0
    batch_rows: int = 0
    stages_ms: dict[str, float] = field(default_factory=dict)

    @property
    def result(self) -> str:
        """Whether an evaluation was answered."""
        return "ok" if self.status < 400 else "error"  # noqa: PLR2004 - where HTTP's errors begin

    def line(self) -> dict[str, object]:
        """Returns the fields of the log line; no header, no tensor, nothing longer than its bound."""
        line: dict[str, object] = {
            "request_id": self.request_id,
            "method": self.method[:16],
            "route": self.route,
            "status": self.status,
            "duration_ms": round(self.duration_s * 1e3, 3),
            "received_bytes": self.received_bytes,
            "sent_bytes": self.sent_bytes,
        }
        for name in ("trace_id", "code", "wire"):
            if (value := getattr(self, name)) is not None:
                line[name] = value
        if self.batch_requests:
            for name in ("rows", "classes", "batch_requests", "batch_rows"):
                line[name] = getattr(self, name)
            for name, milliseconds in self.stages_ms.items():
                line[f"{name}_ms"] = milliseconds
        return line

    def server_timing(self) -> str:
        """Returns the value of the Server-Timing header (milliseconds)."""
        stages = "".join([f"{name};dur={milliseconds}, " for name, milliseconds in self.stages_ms.items()])
        return f'{stages}batch;desc="requests={self.batch_requests} rows={self.batch_rows}"'
