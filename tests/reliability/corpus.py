"""Bodies that are wrong, each with the refusals that are right: what the other tests know, and what belongs together.

`HAND_MADE` has at least 300; `mutations` makes thousands more, of which only the class of the answer is known.
"""

import base64
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from service.errors import ServiceError
from tests.api.test_attacks import BROKEN_KEYS, NESTING
from tests.api.test_errors import GOOD_TENSOR, INVALID, ONE_ROW, RAGGED, TENSORS, UNKNOWN_NAMES
from tests.api.test_malformed_json import GOOD, INTEGERS, LONG_NUMBERS, MALFORMED, with_logit
from tests.calls import BINARY, EXAMPLE, JSON
from tests.unit.wire.test_safetensors_body import HOSTILE, a_file, entry
from tests.wire import as_arrays, encode, encode_tensors

OPTIONS: Final[Mapping[str, Any]] = {
    "reduction": "mean",
    "precision": "standard",
    "encoding": "array",
    "input": "logits",
    "gradient_dtype": "F32",
    "include": ["loss"],
    "class_axis": 1,
    "ignore_index": -100,
    "label_smoothing": 0.1,
    "temperature": 2.0,
    "z_loss": 0.1,
    "grad_output": 1.0,
    "weight": [1, 1, 1],
    "sample_weight": [1],
}
NEVER: Final[tuple[Any, ...]] = ("", "x", -1.5, 1e400, 2**70, True, [], [[]], {}, {"a": 1}, ["loss", 1], [None], "NaN")
"""Values of which no option takes any, but for those named in `TAKEN`."""
TAKEN: Final = {"grad_output=-1.5"}


@dataclass(frozen=True, slots=True)
class Wrong:
    """A body that must be refused."""

    name: str
    body: bytes
    headers: Mapping[str, str]
    statuses: frozenset[int] = frozenset({400, 422})
    codes: frozenset[str] = frozenset()


def _params(name: str, params: list[Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    return ((f"{name}-{param.id}", param.values) for param in params)


def _known() -> Iterator[Wrong]:
    """What tests elsewhere examine closely."""
    for name, (body,) in [*_params("json", MALFORMED), *_params("keys", BROKEN_KEYS)]:
        yield Wrong(name, body if isinstance(body, bytes) else body.encode(), JSON)
    for name, (body, _) in _params("integer", INTEGERS):
        yield Wrong(name, body, JSON, frozenset({422}))
    for name, (number, _) in _params("digits", LONG_NUMBERS):
        yield Wrong(name, with_logit(number), JSON)
    for name, (logits, labels, *_) in _params("nesting", NESTING):
        yield Wrong(name, f'{{"logits":{logits},"labels":{labels}}}'.encode(), JSON)
    for name, (logits, labels, _) in _params("ragged", RAGGED):
        yield Wrong(name, encode({"logits": logits, "labels": labels}), JSON, frozenset({422}))
    for name, (fields, *_) in _params("unknown", UNKNOWN_NAMES):
        yield Wrong(name, encode(fields), JSON, frozenset({400}), frozenset({"unknown_field"}))
    for name, (fields, *_) in _params("invalid", INVALID):
        yield Wrong(name, encode(fields), JSON, frozenset({422}))
    for name, (part, code, _) in _params("tensor", TENSORS):
        body = encode({"logits": {**GOOD_TENSOR, **part}, "labels": [0]})
        yield Wrong(name, body, JSON, frozenset({422}), frozenset({code}))
    for name, (body, error, _) in _params("safetensors", HOSTILE):
        assert issubclass(error, ServiceError)
        yield Wrong(name, body, BINARY, codes=frozenset({error.code}))


def _options() -> Iterator[Wrong]:
    """Every option with values of other types."""
    for option in OPTIONS:
        for value in NEVER:
            if (name := f"{option}={value!r}") not in TAKEN:
                text = json.dumps({**ONE_ROW, option: value}).replace("Infinity", "1e400")
                yield Wrong(name, text.encode(), JSON)


def _elements() -> Iterator[Wrong]:
    """Every array with elements that are no numbers of its kind, at its first, a middle and its last place."""
    arrays: dict[str, list[Any]] = {"logits": [[1.0, 2.0, 3.0]] * 3, "labels": [0, 1, 2], "sample_weight": [1, 1, 1]}
    for field, values in arrays.items():
        for element in ('"3"', '"nan"', "true", "null", "{}", "[]", "[1]", "1e400", '""', "[[[]]]"):
            for place in range(3):
                fields: dict[str, Any] = {"logits": [[1.0, 2.0, 3.0]] * 3, "labels": [0, 1, 2]}
                changed: list[Any] = list(values)
                changed[place] = [1.0, "@", 3.0] if field == "logits" else "@"
                text = json.dumps({**fields, field: changed}).replace('"@"', element)
                yield Wrong(f"{field}[{place}]={element}", text.encode(), JSON)


def _sizes() -> Iterator[Wrong]:
    """Tensors that don't agree with each other or with themselves, in JSON and in binary."""
    for rows, labels in ((1, 2), (2, 1), (3, 0), (0, 3), (2, 5)):
        data = base64.b64encode(bytes(8 * rows)).decode()
        logits = {"dtype": "F32", "shape": [rows, 2], "data": data}
        ones = {"dtype": "I8", "shape": [labels], "data": base64.b64encode(bytes(labels)).decode()}
        yield Wrong(f"{rows}-rows-{labels}-labels", encode({"logits": logits, "labels": ones}), JSON, frozenset({422}))
        header = {
            "logits": entry("F32", [rows, 2], [0, 8 * rows]),
            "labels": entry("I8", [labels], [8 * rows, 8 * rows + labels]),
        }
        yield Wrong(f"binary-{rows}-rows-{labels}-labels", a_file(header, bytes(8 * rows + labels)), BINARY)
    for size in (2**31, 2**32, 2**40, 2**53, 2**63, 2**64, 2**70, 10**30):
        for shape in ([size, 1], [1, size], [size, size], [0, size]):
            name = "x".join(map(str, shape))
            tensor = {"dtype": "F32", "shape": shape, "data": base64.b64encode(bytes(100)).decode()}
            yield Wrong(f"claims-{name}", encode({"logits": tensor, "labels": [0]}), JSON, frozenset({413, 422}))
            header = {"logits": entry("F32", shape, [0, 100])}
            yield Wrong(f"binary-claims-{name}", a_file(header, bytes(100)), BINARY, frozenset({400, 413, 422}))


HAND_MADE: Final = [*_known(), *_options(), *_elements(), *_sizes()]
GOOD_BODIES: Final = [(GOOD, JSON), (encode_tensors(as_arrays(EXAMPLE)), BINARY)]


def prefixes() -> Iterator[Wrong]:
    """Every good body, cut at every place."""
    for body, headers in GOOD_BODIES:
        for length in range(len(body)):
            yield Wrong(f"cut-at-{length}", body[:length], headers)


def mutations(count: int, seed: int = 7) -> Iterator[tuple[bytes, Mapping[str, str]]]:
    """Good bodies with one to four bytes changed, left out, doubled or moved, in turn."""
    chance = random.Random(seed)
    for number in range(count):
        body, headers = GOOD_BODIES[number % len(GOOD_BODIES)]
        mutated = bytearray(body)
        for _ in range(chance.randint(1, 4)):
            place, other = chance.randrange(len(mutated)), chance.randrange(len(mutated))
            match chance.randrange(6):
                case 0:
                    mutated[place] ^= 1 << chance.randrange(8)
                case 1:
                    mutated[place] = chance.choice(b'\x00\xff"[]{}:,-+.0123456789eE\\ tfn')
                case 2:
                    del mutated[place]
                case 3:
                    mutated.insert(place, mutated[other])
                case 4:
                    mutated[place : place + 8] = mutated[other : other + 8]
                case _:
                    del mutated[min(place, other) : max(place, other) // 2 + min(place, other) // 2]
            if not mutated:
                break
        yield bytes(mutated), headers
