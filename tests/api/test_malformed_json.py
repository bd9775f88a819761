"""Bodies that are not JSON, or not JSON that two readers would read alike."""

import time
from typing import Any

import httpx
import pytest

from tests.calls import EXAMPLE, check_problem, pointers, send, words
from tests.wire import encode

GOOD = (
    b'{"logits": [[1.5, -2e0, "NaN"], [0, 3, 4]], "labels": [0, 2], "include": ["loss", "losses"], '
    b'"weight": [1, 0.5, 2], "reduction": "mean", "label_smoothing": 0.1, "encoding": "array"}'
)


def with_logit(text: str) -> bytes:
    return f'{{"logits": [[1, {text}]], "labels": [0]}}'.encode()


def test_the_body_that_is_cut_and_mutated_below_is_good(client: httpx.Client) -> None:
    answer = send(client, GOOD).json()
    assert answer["losses"][0] == "NaN"
    assert answer["losses"][1] > 0


def test_every_prefix_of_a_good_body_is_malformed(client: httpx.Client) -> None:
    for length in range(len(GOOD)):
        check_problem(send(client, GOOD[:length]), 400, "malformed_json")


@pytest.mark.parametrize("replacement", [b"", b"\x00", b"\xff", b'"', b"]", b"9", b",,", b"\\", b" "], ids=repr)
def test_no_mutation_of_a_good_body_is_a_server_error(replacement: bytes, client: httpx.Client) -> None:
    for position in range(len(GOOD)):
        mutated = GOOD[:position] + replacement + GOOD[position + 1 :]
        response = send(client, mutated)
        if response.status_code == 200:
            assert set(response.json()) >= {"loss_sum", "normalizer", "count"}, mutated
        else:
            assert response.status_code in {400, 422}, mutated
            check_problem(response, response.status_code, response.json()["code"])


MALFORMED = [
    pytest.param(b"\xef\xbb\xbf" + encode(EXAMPLE), id="byte-order-mark"),
    pytest.param(encode(EXAMPLE).decode().encode("utf-16"), id="utf-16"),
    pytest.param(encode(EXAMPLE) + b"x", id="trailing-letter"),
    pytest.param(encode(EXAMPLE) * 2, id="two-documents"),
    pytest.param(encode(EXAMPLE) + b"\x00", id="trailing-nul"),
    pytest.param(encode(EXAMPLE)[:-1] + b",}", id="trailing-comma"),
    pytest.param(b'{"logits": [[1, 2,]], "labels": [0]}', id="trailing-comma-in-a-row"),
    pytest.param(b"{'logits': [[1, 2]], 'labels': [0]}", id="single-quotes"),
    pytest.param(b"{logits: [[1, 2]], labels: [0]}", id="bare-names"),
    pytest.param(b'{"logits": [[1, 2]], "labels": [0]} // done', id="comment"),
    pytest.param(b'{"logits": [[1, 2]], "labels": [0], "reduction": "me\xffan"}', id="invalid-utf-8"),
    pytest.param(b'{"logits": [[1, 2]], "labels": [0], "reduction": "\xed\xa0\x80"}', id="surrogate-in-utf-8"),
    pytest.param(b'{"logits": [[1, 2]], "labels": [0], "reduction": "\\ud800"}', id="lone-surrogate"),
    pytest.param(b'{"logits": [[1, 2]], "labels": [0], "\\udfff": 1}', id="lone-surrogate-in-a-name"),
    pytest.param(b'{"logits": [[1, 2]], "labels": [0], "reduction": "\\x6d"}', id="unknown-escape"),
    pytest.param(b'{"logits": [[1, 2]], "labels": [0], "reduction": "me\nan"}', id="line-break-in-a-string"),
    pytest.param(with_logit("NaN"), id="bare-nan"),
    pytest.param(with_logit("Infinity"), id="bare-infinity"),
    pytest.param(with_logit("-Infinity"), id="bare-minus-infinity"),
    pytest.param(with_logit("nan"), id="bare-nan-in-lower-case"),
    pytest.param(with_logit("+1"), id="plus-sign"),
    pytest.param(with_logit("01"), id="leading-zero"),
    pytest.param(with_logit(".5"), id="no-integer-part"),
    pytest.param(with_logit("5."), id="no-fraction"),
    pytest.param(with_logit("1e"), id="no-exponent"),
    pytest.param(with_logit("0x10"), id="hexadecimal"),
    pytest.param(with_logit("1_000"), id="underscore"),
    pytest.param(with_logit("True"), id="python-literal"),
    pytest.param(b"[" * 100_000, id="deep-and-open"),
    pytest.param(with_logit("[" * 10_000 + "]" * 10_000), id="deep-and-closed"),
    pytest.param(b'{"logits":' * 50_000, id="deep-objects"),
    pytest.param(b"\x00" * 100, id="nul-bytes"),
    pytest.param(b" \n\t ", id="blank"),
]


@pytest.mark.parametrize("body", MALFORMED)
def test_what_is_not_json_is_malformed(body: bytes, client: httpx.Client) -> None:
    check_problem(send(client, body), 400, "malformed_json")


@pytest.mark.parametrize("around", [b" \n\t\r%s", b"%s \n\t\r\n"], ids=["before", "after"])
def test_blanks_around_a_document_are_json(around: bytes, client: httpx.Client) -> None:
    answer = send(client, around % encode(EXAMPLE)).json()
    assert answer["loss"] == pytest.approx(1.2130, abs=5e-5)


def test_escaped_names_are_the_names_they_spell(client: httpx.Client) -> None:
    answer = send(client, encode(EXAMPLE).replace(b'"labels"', b'"l\\u0061bels"')).json()
    assert answer["loss"] == pytest.approx(1.2130, abs=5e-5)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        pytest.param(b'{"logits": [[1, 2]], "labels": [0], "labels": [1]}', "#/labels", id="other-value"),
        pytest.param(b'{"logits": [[1, 2]], "labels": [0], "labels": [0]}', "#/labels", id="same-value"),
        pytest.param(b'{"logits": [[1, 2]], "labels": [0], "l\\u0061bels": [1]}', "#/labels", id="written-otherwise"),
        pytest.param(b'{"logits": [[1, 2]], "z_loss": 0, "labels": [0], "z_loss": 1}', "#/z_loss", id="option"),
        pytest.param(
            b'{"logits": {"dtype": "F32", "shape": [1, 1], "data": "AAAAAA==", "dtype": "F64"}, "labels": [0]}',
            "#/logits/dtype",
            id="in-a-tensor",
        ),
    ],
)
def test_name_given_twice_is_a_duplicate_field(body: bytes, pointer: str, client: httpx.Client) -> None:
    problem = check_problem(send(client, body), 400, "duplicate_field")
    assert pointers(problem) == [pointer]


def test_position_of_a_syntax_error_is_given(client: httpx.Client) -> None:
    body = b'{"logits": [[1, 2], [3, x]], "labels": [0, 1]}'
    text = words(check_problem(send(client, body), 400, "malformed_json"))
    assert any(str(position) in text for position in (body.index(b"x"), body.index(b"x") + 1)), text


def fastest_of_three(client: httpx.Client, body: bytes) -> tuple[float, httpx.Response]:
    """Answer with the least of three durations, which is the one the machine disturbed least."""

    def measure() -> tuple[float, httpx.Response]:
        start = time.perf_counter()
        response = send(client, body)
        return time.perf_counter() - start, response

    return min((measure() for _ in range(3)), key=lambda measured: measured[0])


LONG = 10**6
LONG_NUMBERS = [
    pytest.param("1" * LONG, "#/logits/0/1", id="integer"),
    pytest.param("-" + "9" * LONG, "#/logits/0/1", id="negative-integer"),
    pytest.param("1" * LONG + ".5", "#/logits/0/1", id="fraction"),
    pytest.param("1e" + "9" * LONG, "#/logits/0/1", id="exponent"),
]


@pytest.mark.parametrize(("number", "pointer"), LONG_NUMBERS)
def test_number_of_a_million_digits_is_refused_quickly(number: str, pointer: str, client: httpx.Client) -> None:
    duration, response = fastest_of_three(client, with_logit(number))
    problem = check_problem(response, response.status_code, "number_out_of_range", "malformed_json")
    assert response.status_code in {400, 422}
    assert problem["code"] == "malformed_json" or pointers(problem) == [pointer]
    assert duration < 0.5, f"{duration:.3f} s"


def test_million_zeros_behind_the_point_are_a_number_or_refused_quickly(client: httpx.Client) -> None:
    duration, response = fastest_of_three(client, with_logit("0." + "0" * LONG + "1"))
    if response.status_code == 200:
        assert response.json()["losses"] == pytest.approx([0.3132617])
    else:
        check_problem(response, response.status_code, "number_out_of_range", "malformed_json")
    assert duration < 0.5, f"{duration:.3f} s"


INTEGERS = [
    pytest.param(b'{"logits": [[1, 2]], "labels": [9223372036854775807]}', "#/labels/0", id="label-of-63-bits"),
    pytest.param(b'{"logits": [[1, 2]], "labels": [9223372036854775808]}', "#/labels/0", id="label-of-64-bits"),
    pytest.param(b'{"logits": [[1, 2]], "labels": [18446744073709551616]}', "#/labels/0", id="label-of-65-bits"),
    pytest.param(
        b'{"logits": [[1, 2]], "labels": [18446744073709551516]}', "#/labels/0", id="label-that-wraps-to-minus-100"
    ),
    pytest.param(b'{"logits": [[1, 2]], "labels": [-9223372036854775809]}', "#/labels/0", id="label-below-63-bits"),
    pytest.param(
        b'{"logits": [[1, 2]], "labels": [0], "ignore_index": 9223372036854775808}', "#/ignore_index", id="ignore-index"
    ),
]


@pytest.mark.parametrize(("body", "pointer"), INTEGERS)
def test_integer_beyond_its_range_is_refused_by_name(body: bytes, pointer: str, client: httpx.Client) -> None:
    problem = check_problem(send(client, body), 422, "number_out_of_range", "label_out_of_range", "invalid_value")
    assert pointers(problem) == [pointer]


@pytest.mark.parametrize("digits", ["18446744073709551616", "1" + "0" * 30], ids=["65-bits", "100-bits"])
def test_long_integer_logit_is_its_value_or_named(digits: str, client: httpx.Client) -> None:
    """It fits float32, but no 64-bit integer: never another value."""
    response = send(client, with_logit(digits))
    if response.status_code == 200:
        losses: list[Any] = response.json()["losses"]
        assert losses == pytest.approx([float(digits)], rel=1e-6)
    else:
        assert pointers(check_problem(response, 422, "number_out_of_range")) == ["#/logits/0/1"]
