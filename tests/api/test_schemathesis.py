"""Requests generated from the OpenAPI document, valid and invalid, and every check on their answers."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from schemathesis.engine import events, from_schema

from tests.server import Server

EXAMPLES = 150
FEWEST_REQUESTS = 500

# A schema can't relate the shapes of logits and labels, so data that fits it may still be refused.
CONFIG: dict[str, Any] = {
    "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "413", "422"]}},
    "generation": {"deterministic": True, "max-examples": EXAMPLES},
    "request-timeout": 20,
}


def describe_failures(event: events.ScenarioFinished) -> Iterator[str]:
    """Name each failed check with the request that failed it."""
    for case_id, checks in event.recorder.checks.items():
        for check in checks:
            if check.failure_info is not None:
                failure = check.failure_info
                yield f"{event.phase.name} {check.name}: {failure.failure}\n{failure.code_sample}\n[{case_id}]"


@pytest.mark.timeout(120)
def test_every_check_holds_for_generated_requests(server: Server) -> None:
    """Examples, boundaries of every constraint and random data, as schemathesis' command line runs them."""
    config = schemathesis.Config.from_dict(CONFIG)
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=config)
    failures: list[str] = []
    requests = 0
    for event in from_schema(schema).execute():
        assert not isinstance(event, events.NonFatalError | events.FatalError), event
        if isinstance(event, events.ScenarioFinished):
            failures += describe_failures(event)
            requests += len(event.recorder.interactions)
    assert not failures, f"{len(failures)} of {requests} requests:\n" + "\n\n".join(failures[:20])
    assert requests >= FEWEST_REQUESTS
