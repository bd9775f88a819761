"""Query parameters of binary requests, as JSON would have brought them."""

from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from service.api.query import move_grad_output, read_query, refuse_query
from service.dtypes import Array
from service.errors import DuplicateField, InvalidValue, ServiceError, UnknownField

READ = [
    pytest.param(b"", {}, id="nothing"),
    pytest.param(b"&&", {}, id="nothing-but-separators"),
    pytest.param(b"class_axis=-1&ignore_index=-100", {"class_axis": -1, "ignore_index": -100}, id="integers"),
    pytest.param(b"z_loss=1e-4&temperature=2.0", {"z_loss": 1e-4, "temperature": 2.0}, id="floats"),
    pytest.param(b"temperature=1e%2B3", {"temperature": 1000.0}, id="encoded-plus"),
    pytest.param(b"reduction=%6eone", {"reduction": "none"}, id="encoded-letter"),
    pytest.param(b"r%65duction=none", {"reduction": "none"}, id="encoded-name"),
    pytest.param(b"include=loss", {"include": ["loss"]}, id="one-output"),
    pytest.param(b"include=loss,gradients", {"include": ["loss", "gradients"]}, id="outputs"),
    pytest.param(b"include=loss%2Cgradients", {"include": ["loss", "gradients"]}, id="encoded-comma"),
    pytest.param(b"include=", {"include": [""]}, id="empty-list"),
    pytest.param(b"include", {"include": [""]}, id="name-alone"),
    pytest.param(b"include=3", {"include": ["3"]}, id="number-among-names"),
    pytest.param(b"grad_output=-2", {"grad_output": -2}, id="grad-output"),
]


@pytest.mark.parametrize(("query", "options"), READ)
def test_parameters_are_read(query: bytes, options: dict[str, Any]) -> None:
    found = read_query(query)
    assert found == options
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in options.items()
    }


NO_NUMBERS = [
    *("", "x", "true", "false", "null", "NaN", "Infinity", "-Infinity", "0x10", "1_000", "01", ".5", "5.", "1e400"),
    *("[1]", '"1"', "{}", "1 2", "\u0661", "9" * 5000 + "x", "[" * 5000),
]


@pytest.mark.parametrize("text", NO_NUMBERS, ids=lambda text: repr(text[:20]))
def test_what_json_does_not_call_a_number_stays_text(text: str) -> None:
    assert read_query(b"temperature=" + quote(text).encode()) == {"temperature": text}


REFUSED = [
    pytest.param(b"encoding=array", UnknownField, "#/encoding", id="encoding"),
    pytest.param(b"logits=1", UnknownField, "#/logits", id="a-tensor"),
    pytest.param(b"Reduction=sum", UnknownField, "#/Reduction", id="wrong-case"),
    pytest.param(b"=1", UnknownField, "#/", id="no-name"),
    pytest.param(b"a%2Fb~c%20d=1", UnknownField, "#/a~1b~0c%20d", id="name-to-escape"),
    pytest.param(b"%ff=1", UnknownField, "#/%EF%BF%BD", id="not-utf-8"),
    pytest.param(b"x" * 60_000, UnknownField, "#/" + "x" * 64, id="long-name"),
    pytest.param(b"reduction=sum&reduction=sum", DuplicateField, "#/reduction", id="twice-the-same"),
    pytest.param(b"include=loss&include=losses", DuplicateField, "#/include", id="lists-are-not-joined"),
    pytest.param(b"z_loss=1&z%5Floss=1", DuplicateField, "#/z_loss", id="written-otherwise"),
]


@pytest.mark.parametrize(("query", "error", "pointer"), REFUSED)
def test_names_that_do_not_belong_or_stand_twice_are_refused(
    query: bytes, error: type[ServiceError], pointer: str
) -> None:
    with pytest.raises(error) as raised:
        read_query(query)
    assert [finding.pointer for finding in raised.value.errors] == [pointer]


def test_a_json_request_has_no_query() -> None:
    refuse_query(b"")
    with pytest.raises(UnknownField) as raised:
        refuse_query(b"reduction=sum&x=1")
    assert raised.value.errors[0].pointer == "#/reduction"


@pytest.mark.parametrize("number", [2, -0.5, 2**63, 2**53 + 1])
def test_a_number_for_grad_output_becomes_the_array_it_stands_for(number: float) -> None:
    options: dict[str, object] = {"grad_output": number, "reduction": "sum"}
    arrays: dict[str, Array] = {}
    move_grad_output(options, arrays)
    assert options == {"reduction": "sum"}
    assert arrays["grad_output"].dtype == np.float64
    assert arrays["grad_output"].ndim == 0
    assert arrays["grad_output"] == float(number)


def test_without_the_parameter_the_tensor_stays() -> None:
    arrays: dict[str, Array] = {"grad_output": np.ones(3)}
    move_grad_output({}, arrays)
    assert arrays["grad_output"].tolist() == [1, 1, 1]


def test_grad_output_as_a_tensor_and_as_a_parameter_is_a_duplicate() -> None:
    with pytest.raises(DuplicateField) as raised:
        move_grad_output({"grad_output": 1}, {"grad_output": np.ones(())})
    assert raised.value.errors[0].pointer == "#/grad_output"


def test_text_for_grad_output_is_invalid() -> None:
    with pytest.raises(InvalidValue) as raised:
        move_grad_output({"grad_output": "NaN"}, {})
    assert raised.value.errors[0].pointer == "#/grad_output"
