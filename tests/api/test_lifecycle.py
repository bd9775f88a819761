"""Leaving: what the service still does after SIGTERM."""

import json
import signal
import time

import httpx

from tests.calls import EXAMPLE, evaluate, post
from tests.conftest import StartServer

DRAIN_DELAY_S = 3


def test_terminated_service_is_not_ready_but_answers_until_it_ends(start_server: StartServer) -> None:
    """A second SIGTERM, sent when the block ends, changes nothing: the exit code is still 0."""
    with start_server(device="cpu", drain_delay=DRAIN_DELAY_S) as server, httpx.Client(base_url=server.url) as client:
        before = evaluate(client, EXAMPLE)
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + DRAIN_DELAY_S / 2
        while client.get("/readyz").status_code == httpx.codes.OK:
            assert time.monotonic() < deadline, "readiness did not drop"
        answer = post(client, EXAMPLE)
        assert json.loads(answer.content) == before
        assert answer.headers["connection"] == "close"
        assert client.get("/livez").status_code == 200
