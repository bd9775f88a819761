"""The vectors that drive clients in every language, over plain HTTP and in full."""

import base64
import json
import re
import subprocess
import sys
from typing import Any, get_args

import httpx
import pytest

from service.api.schemas import CrossEntropyRequest, EvaluationWarning
from service.loss.options import OUTPUTS
from tests.calls import PATH, check_problem, send
from tests.vectors import BY_NAME, EXACT, EXAMPLES, FILE, PROBES, VECTORS, Vector, check, differences
from tests.wire import NUMPY_DTYPES

BINARY = [vector for vector in VECTORS if "safetensors" in vector]


def name_of(vector: Vector) -> str:
    return str(vector["name"])


@pytest.mark.parametrize("vector", VECTORS, ids=name_of)
def test_service_answers_as_computed_in_float64(vector: Vector, client: httpx.Client) -> None:
    response = send(client, json.dumps(vector["request"], allow_nan=False))
    check(vector, response.status_code, response.json())
    if vector["status"] != httpx.codes.OK:
        check_problem(response, vector["status"], vector["response"]["code"])


@pytest.mark.parametrize("vector", BINARY, ids=name_of)
def test_service_answers_the_same_in_binary(vector: Vector, client: httpx.Client) -> None:
    query, body = vector["safetensors"]["query"], base64.b64decode(vector["safetensors"]["body"])
    headers = {"content-type": "application/x-safetensors", "accept": "application/json"}
    response = client.post(f"{PATH}?{query}", content=body, headers=headers)
    check(vector, response.status_code, response.json())


def test_file_is_what_its_script_writes() -> None:
    script = EXAMPLES / "make_conformance.py"
    finished = subprocess.run([sys.executable, script], capture_output=True, check=True, encoding="utf-8")
    assert finished.stdout == FILE.read_text(encoding="utf-8")


def test_script_shares_no_code_with_the_service() -> None:
    for name in ("make_conformance.py", "reference.py"):
        source = (EXAMPLES / name).read_text(encoding="utf-8")
        imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
        assert imported <= {*sys.stdlib_module_names, "numpy", "reference"}


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(VECTORS)


def used(*keys: str) -> set[Any]:
    """Values at a path into every vector, one level of lists unfolded."""
    found: list[Any] = VECTORS
    for key in keys:
        below = [item[key] for item in found if isinstance(item, dict) and key in item]
        found = [item for value in below for item in (value if isinstance(value, list) else [value])]
    return set(found)


def test_vectors_cover_every_field_output_and_warning() -> None:
    fields = {name for vector in VECTORS for name in vector["request"]}
    assert fields >= set(CrossEntropyRequest.model_fields)
    assert used("request", "include") >= set(OUTPUTS)
    assert used("response", "warnings", "code") == set(get_args(EvaluationWarning.model_fields["code"].annotation))
    codes = {"unknown_field", "missing_field", "invalid_value", "number_out_of_range", "unsupported_dtype"}
    assert used("response", "code") == codes | {"shape_mismatch", "label_out_of_range"}
    assert used("request", "labels", "dtype") | used("request", "logits", "dtype") >= {*NUMPY_DTYPES, "BF16"}


@pytest.mark.parametrize("vector", PROBES, ids=name_of)
def test_comparison_notices_what_differs(vector: Vector, client: httpx.Client) -> None:
    """Of the probes that every language's runner is held to."""
    response = send(client, json.dumps(vector["request"]))
    found = list(differences(vector["response"], response.json(), vector.get("tolerance", EXACT)))
    is_wrong = found != [] or response.status_code != vector["status"]
    assert is_wrong == vector["name"].startswith("wrong"), found
