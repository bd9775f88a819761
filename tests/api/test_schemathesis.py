"""Requests generated from the OpenAPI document, valid and invalid, and every check on their answers."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis.engine import events, from_schema

from tests.calls import BINARY, EXAMPLE, JSON, PATH
from tests.server import Server
from tests.wire import as_arrays, encode_tensors

# A schema can't relate the shapes of logits and labels, so data that fits it may still be refused.
CONFIG: dict[str, Any] = {
    "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "413", "422"]}},
    "request-timeout": 20,
}

# The document can't say what a safetensors file is. This one is good whatever the options are.
schemathesis.openapi.media_type(BINARY["content-type"], st.just(encode_tensors(as_arrays(EXAMPLE))))


def describe_failures(event: events.ScenarioFinished) -> Iterator[str]:
    """Name each failed check with the request that failed it."""
    for case_id, checks in event.recorder.checks.items():
        for check in checks:
            if check.failure_info is not None:
                failure = check.failure_info
                yield f"{event.phase.name} {check.name}: {failure.failure}\n{failure.code_sample}\n[{case_id}]"


def document_of(server: Server, media_type: str) -> dict[str, Any]:
    """Return the document for one form of bodies: the query belongs to binary ones alone, which OpenAPI can't say."""
    document: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").json()
    operation = document["paths"][PATH]["post"]
    content = operation["requestBody"]["content"]
    operation["requestBody"]["content"] = {media_type: content[media_type]}
    if media_type == JSON["content-type"]:
        del operation["parameters"]
    else:
        document["paths"] = {PATH: document["paths"][PATH]}
    return document


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("media_type", "examples", "fewest"),
    [
        pytest.param(JSON["content-type"], 150, 500, id="json"),
        pytest.param(BINARY["content-type"], 50, 150, id="binary"),
    ],
)
def test_every_check_holds_for_generated_requests(media_type: str, examples: int, fewest: int, server: Server) -> None:
    """Examples, boundaries of every constraint and random data, as schemathesis' command line runs them."""
    generation = {"deterministic": True, "max-examples": examples}
    config = schemathesis.Config.from_dict({**CONFIG, "base-url": server.url, "generation": generation})
    schema = schemathesis.openapi.from_dict(document_of(server, media_type), config=config)
    failures: list[str] = []
    requests = 0
    for event in from_schema(schema).execute():
        assert not isinstance(event, events.NonFatalError | events.FatalError), event
        if isinstance(event, events.ScenarioFinished):
            failures += describe_failures(event)
            requests += len(event.recorder.interactions)
    assert not failures, f"{len(failures)} of {requests} requests:\n" + "\n\n".join(failures[:20])
    assert requests >= fewest
