"""Requests generated from the OpenAPI document, valid and invalid, and every check on their answers."""

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.schemas import BaseSchema

from tests.server import Server

EXAMPLES = 60

# A schema can't relate the shapes of logits and labels, so data that fits it may still be refused.
CONFIG = schemathesis.Config.from_dict(
    {
        "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "413", "422"]}},
        "generation": {"deterministic": True, "max-examples": EXAMPLES},
    }
)


@pytest.fixture(scope="module")
def api_schema(server: Server) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=CONFIG)


schema = schemathesis.pytest.from_fixture("api_schema")


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@pytest.mark.timeout(120)
def test_every_check_holds_for_generated_requests(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(timeout=20)


def test_the_server_is_as_before(client: httpx.Client) -> None:
    assert client.get("/readyz").status_code == 200
