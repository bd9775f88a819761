"""The conformance vectors of `clients/examples`, and how an answer is compared with them."""

import copy
import json
from collections.abc import Iterator
from typing import Any

from tests.server import ROOT

EXAMPLES = ROOT / "clients" / "examples"
FILE = EXAMPLES / "conformance.json"
EXACT = {"relative": 0.0, "absolute": 0.0}

Vector = dict[str, Any]
VECTORS: list[Vector] = json.loads(FILE.read_text(encoding="utf-8"))["vectors"]
BY_NAME = {vector["name"]: vector for vector in VECTORS}


def differences(expected: object, found: object, tolerance: dict[str, float], place: str = "#") -> Iterator[str]:
    """Say what differs, by the rules of `clients/examples/README.md`."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for name, value in expected.items():
            yield from differences(value, found.get(name), tolerance, f"{place}/{name}")
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, tolerance, f"{place}/{index}")
    elif isinstance(expected, int | float) and isinstance(found, int | float):
        if abs(found - expected) > tolerance["absolute"] + tolerance["relative"] * abs(expected):
            yield f"{place} is {found}, not {expected}"
    elif found != expected:
        yield f"{place} is {found}, not {expected}"


def check(vector: Vector, status: int, answer: object) -> None:
    """Assert that an answer is the one the vector expects."""
    assert status == vector["status"], answer
    assert list(differences(vector["response"], answer, vector.get("tolerance", EXACT))) == []


def altered(name: str, source: str, **response: object) -> Vector:
    """A vector under another name that expects something else."""
    vector = copy.deepcopy(BY_NAME[source])
    vector["response"] |= response
    return {**vector, "name": name, "tolerance": {"relative": 1e-6, "absolute": 1e-6}}


LOSS = 1.2130027810732524
OFF_BY_ONE_MILLIONTH = [0.68841956 * (1 + 3e-6), 1.5845878, 1.366001]
# What a runner has to accept and, named wrong, to refuse.
PROBES = [
    altered("just-inside", "readme", loss=LOSS + 2.1e-6),
    altered("wrong-number", "readme", loss=LOSS + 2.3e-6),
    altered("wrong-number-deep-inside", "readme", losses=OFF_BY_ONE_MILLIONTH),
    altered("wrong-length", "readme", losses=[0.68841956, 1.5845878]),
    altered("wrong-nan", "readme", loss="NaN"),
    altered("wrong-number-for-nan", "all-ignored", loss=0.0),
    altered("wrong-infinity", "masked-label", loss="-Infinity"),
    altered("wrong-absence", "readme", loss=None),
    altered("wrong-presence", "reduction-none", loss=LOSS),
    altered("wrong-type", "readme", losses=0.0),
    altered("wrong-warning", "all-ignored", warnings=[{"code": "nonfinite_loss"}]),
    altered("wrong-number-of-warnings", "all-ignored", warnings=[]),
    altered("wrong-base64", "base64-losses", losses={"dtype": "F64"}),
    altered("wrong-code", "unknown-field", code="invalid_value"),
    altered("wrong-place", "unknown-field", errors=[{"pointer": "#/ignore_index"}]),
    {**BY_NAME["unknown-field"], "name": "wrong-status", "status": 422},
    BY_NAME["unknown-field"],
    BY_NAME["broken-rows"],
]
