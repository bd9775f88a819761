"""The vectors that every client is driven by (clients/examples/conformance.json), through the Python client."""

import base64
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.vectors import VECTORS, Vector, differences
from tests.wire import NUMPY_DTYPES, nest, read_number

Call = Callable[..., Any]
EXPRESSIBLE = [one for one in VECTORS if one["status"] == 200 and "encoding" not in one["request"]]


def array_of(field: Any) -> Any:
    """A field of a request as one would have it in Python."""
    if isinstance(field, dict):
        dtype = ml_dtypes.bfloat16 if field["dtype"] == "BF16" else NUMPY_DTYPES[field["dtype"]]
        return np.frombuffer(base64.b64decode(field["data"]), dtype).reshape(field["shape"])
    return read_number(field)


def answer_of(result: Any) -> dict[str, Any]:
    """A result as its JSON."""
    fields = {name: getattr(result, name) for name in ("loss_sum", "normalizer", "count", "ignored")}
    warnings = [{**vars(warning), "first": list(warning.first)} for warning in result.warnings]
    return {**plain({**fields, **result.outputs}), "warnings": warnings}


def plain(value: Any) -> Any:
    return {name: plain(item) for name, item in value.items()} if isinstance(value, dict) else nest(value)


@pytest.mark.parametrize("vector", [pytest.param(one, id=one["name"]) for one in EXPRESSIBLE])
def test_vectors_come_out_as_expected(call: Call, vector: Vector) -> None:
    request = dict(vector["request"])
    arrays = {name: array_of(request.pop(name)) for name in ("logits", "labels")}
    for name in ("weight", "sample_weight", "grad_output"):
        if request.get(name) is not None:
            request[name] = array_of(request[name])
    result = call("cross_entropy", **arrays, **request)
    assert list(differences(vector["response"], answer_of(result), vector["tolerance"])) == []
