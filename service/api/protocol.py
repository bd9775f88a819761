"""uvicorn's HTTP/1.1 protocol, with its own refusals as problem documents."""

import uuid

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .. import __version__
from ..errors import MalformedRequest
from .problems import MEDIA_TYPE, document, status_of


class HttpProtocol(HttpToolsProtocol):
    """Answers what is not HTTP before any application sees it."""

    def send_400_response(self, msg: str) -> None:
        """Refuses bytes that are not a request, and closes the connection."""
        request_id = uuid.uuid4().hex
        error = MalformedRequest(msg)
        body = document(error, request_id)
        headers = {
            "content-type": MEDIA_TYPE,
            "content-length": len(body),
            "connection": "close",
            "cache-control": "no-store",
            "x-request-id": request_id,
            "x-service-version": __version__,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(STATUS_LINE[status_of(error)] + lines.encode() + b"\r\n" + body)
        self.transport.close()
