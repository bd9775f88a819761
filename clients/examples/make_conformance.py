"""Writes the conformance vectors: `python make_conformance.py > conformance.json`.

Requests, and the answers that reference.py computes in float64. README.md describes the format.
"""  # noqa: INP001 - a script, not a package

import base64
import json
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

import numpy as np
from reference import Fields, evaluate, read, read_logits, tensor_object, to_bytes

DIGITS = 12  # float64 has 15 to 17; the last ones depend on the machine
TOLERANCE = {"relative": 5e-6, "absolute": 2e-7}
TOLERANCES = {
    "F64": {"relative": 1e-11, "absolute": 1e-12},
    "F16": {"relative": 1e-3, "absolute": 1e-6},
    "BF16": {"relative": 8e-3, "absolute": 1e-6},
    "tiny": {"relative": 5e-6, "absolute": 0.0},
}
ARRAYS = {"logits": "F32", "labels": "I64", "weight": "F64", "sample_weight": "F64", "grad_output": "F64"}


def plain(value: Any) -> Any:  # noqa: ANN401 - any answer
    """JSON values: rounded numbers, and strings for those JSON lacks."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return float(f"{value:.{DIGITS}g}")
    return value


def answer_of(request: Fields, warnings: list[Fields]) -> Fields:
    """The fields of the answer, in the encoding asked for."""
    found = evaluate(request)
    wanted = request.get("include") or ["loss", "losses"]
    names = ["loss", "loss_sum", "normalizer", "count", "ignored"]
    names = [name for name in names if name != "loss" or "loss" in wanted] + [name for name in wanted if name != "loss"]
    answer = {name: found[name] for name in names}
    if request.get("encoding") == "base64":
        answer |= {
            name: tensor_object(value, dtype_of(name, request))
            for name, value in answer.items()
            if isinstance(value, np.ndarray) and value.ndim
        }
    return {**plain(answer), "warnings": warnings}


def dtype_of(name: str, request: Fields) -> str:
    """Dtype of an array in the answer."""
    if name == "predictions":
        return "I64"
    default = "F64" if read_logits(request).dtype == np.float64 else "F32"
    return str(request.get("gradient_dtype", default)) if name == "gradients" else default


def safetensors(request: Fields) -> Fields:
    """Writes the same request in binary: arrays in the body, everything else in the query."""
    header: dict[str, Fields] = {}
    body, query = b"", {}
    for name, value in request.items():
        if name not in ARRAYS or (name == "grad_output" and isinstance(value, float)):
            value = json.dumps(value) if isinstance(value, bool) else value  # noqa: PLW2901 - as a query has it
            query[name] = ",".join(value) if isinstance(value, list) else value
            continue
        array = read(value)
        dtype = "F32" if name == "labels" and array.dtype.kind == "f" else ARRAYS[name]
        raw = to_bytes(array, dtype)
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the elements are aligned
    whole = len(text).to_bytes(8, "little") + text + body
    return {"query": urlencode(query, safe=","), "body": base64.b64encode(whole).decode()}


def accepted(  # noqa: PLR0913 - the parts of a vector
    name: str,
    about: str,
    request: Fields,
    *,
    warnings: Mapping[str, list[int]] | None = None,
    tolerance: str = "",
    binary: bool = False,
) -> Fields:
    """Returns the vector of a request that is answered; `warnings` maps codes to the rows they name."""
    given = [{"code": code, "count": len(rows), "first": rows[:10]} for code, rows in (warnings or {}).items()]
    vector = {"name": name, "about": about, "request": request, "status": 200, "response": answer_of(request, given)}
    vector["tolerance"] = TOLERANCES[tolerance] if tolerance else TOLERANCE
    return {**vector, "safetensors": safetensors(request)} if binary else vector


def refused(name: str, about: str, request: Fields, problem: tuple[int, str], *pointers: str, **more: int) -> Fields:
    """Returns the vector of a request that is refused."""
    status, code = problem
    response = {"code": code, "status": status, "errors": [{"pointer": pointer} for pointer in pointers], **more}
    return {"name": name, "about": about, "request": request, "status": status, "response": response}


def document() -> str:
    """The file: one field of a vector a line."""
    vectors = [*accepted_vectors(), *refused_vectors()]
    written = [
        "{\n"
        + ",\n".join(f'  "{name}": {json.dumps(value, allow_nan=False)}' for name, value in vector.items())
        + "\n}"
        for vector in vectors
    ]
    return '{"version": 1, "path": "/v1/cross-entropy", "vectors": [\n' + ",\n".join(written) + "\n]}\n"


README: Fields = {
    "logits": [
        [0.3703, -0.1607, -0.7473, -2.2135],
        [0.6929, -0.2042, -0.7660, -0.3613],
        [-0.3363, 0.6417, 0.3103, 0.3132],
    ],
    "labels": [0, 1, 2],
}
SOFT = [[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25], [0.0, 0.5, 0.5, 0.0]]
MASKED = [[1.0, "-Infinity", 0.5], [2.0, 0.0, -1.0]]
TINY: Fields = {"logits": [[0.5, -1.5, 2.0], [1.0, 0.25, -0.75]], "labels": [2, 1]}
WAVES = np.round(3 * np.sin(1.7 * np.arange(1, 43)), 2)  # 42 numbers that look random
OF_ROWS = ["losses", "nll", "logsumexp", "entropy", "predictions", "margin", "gradient_norm"]
OUTPUTS = ["loss", *OF_ROWS, "gradients", "probabilities"]
WITH_GRADIENTS = ["loss", "losses", "gradients"]


def accepted_vectors() -> Iterator[Fields]:
    """Requests that are answered."""
    yield accepted("readme", "The worked example of the README.", README, binary=True)
    for name in OUTPUTS[1:]:
        yield accepted(f"include-{name.replace('_', '-')}", f"Only {name}.", {**README, "include": [name]})
    yield from option_vectors()
    yield from shape_vectors()
    yield from dtype_vectors()
    yield from edge_vectors()
    yield from summary_vectors()
    yield from monitoring_vectors()


def option_vectors() -> Iterator[Fields]:
    """One option after the other, and those that meet in one formula."""

    def asked(name: str, about: str, *, binary: bool = False, **options: object) -> Fields:
        include = {"include": WITH_GRADIENTS}
        return accepted(name, about, {**README, **include, **options}, binary=binary)

    yield asked("gradients", "Gradients of the mean.", binary=True)
    yield asked("reduction-sum", "The loss is the sum, and the gradients are the sum's.", reduction="sum", binary=True)
    yield asked("reduction-none", "No loss; gradients of the sum of the losses.", reduction="none")
    yield asked("grad-output", "The gradients are multiplied by it, the loss isn't.", grad_output=-2.5, binary=True)
    about = "With reduction none each row has an upstream gradient of its own."
    yield asked("grad-output-of-rows", about, reduction="none", grad_output=[1.0, -0.5, 0.0], binary=True)
    weight = [1.0, 2.0, 0.5, 0.0]
    yield asked("weight", "The mean divides by the sum of the labels' weights.", weight=weight, binary=True)
    yield asked("weight-tensor", "The same as a tensor object.", weight=tensor_object(weight, "F64"))
    yield asked("weight-float32", "The same in F32.", weight=tensor_object(weight, "F32"))
    sample_weight = [0.5, 0.0, 3.0]
    yield asked("sample-weight", "The mean divides by its sum.", sample_weight=sample_weight, binary=True)
    yield asked("both-weights", "Their products count.", weight=weight, sample_weight=sample_weight)
    yield asked("ignore-index-default", "-100 unless another is given.", labels=[0, -100, 2], binary=True)
    yield asked("ignore-index", "It may be one of the classes.", ignore_index=1, binary=True)
    yield asked("label-smoothing", "A tenth of each label goes to all classes.", label_smoothing=0.1, binary=True)
    about = "The smoothing part is weighted, the normalizer stays the labels' weights."
    yield asked("label-smoothing-weight", about, label_smoothing=0.1, weight=weight)
    yield asked("temperature", "Loss of logits / 2.5; gradients of the logits as sent.", temperature=2.5, binary=True)
    about = "The softmax of logits / 2.5 is what everything describes."
    yield asked("temperature-outputs", about, temperature=2.5, include=OUTPUTS)
    about = "An ignored row has no label to compare with: 0 in nll, margin and gradient_norm."
    yield asked("ignore-index-outputs", about, labels=[0, -100, 2], include=OUTPUTS, binary=True)
    yield asked("z-loss", "0.01 logsumexp² more a row.", z_loss=0.01, binary=True)
    yield asked("precision-high", "Computed in float64, returned in float32.", precision="high")
    yield asked("probabilities", "Labels of the logits' rank are class probabilities.", labels=SOFT, binary=True)
    about = "Weights count in each row, but not in the normalizer."
    yield asked("probabilities-weight", about, labels=SOFT, weight=weight, label_smoothing=0.2)
    yield asked(
        "one-hot", "Integers of the logits' rank are probabilities too.", labels=np.eye(4, dtype=int)[:3].tolist()
    )
    about = "Null is the same as leaving an optional field out."
    yield asked("null", about, weight=None, ignore_index=None, temperature=None, grad_output=None, reduction=None)
    log_probabilities = np.round(np.log([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]), 4).tolist()
    request = {"logits": log_probabilities, "labels": [0, 1], "input": "log_probabilities"}
    yield accepted("log-probabilities", "What log_softmax returned.", request, binary=True)
    request = {"logits": [[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], "labels": [0, 1], "input": "probabilities"}
    yield accepted("probabilities-as-input", "What softmax returned.", request)


def shape_vectors() -> Iterator[Fields]:
    """Where the classes are, and how answers nest."""
    labels = [[0, 3], [2, 1], [1, -100]]
    asked = {"include": ["loss", "losses", "gradients", "predictions"]}
    request = {"logits": WAVES[:24].reshape(3, 4, 2).tolist(), "labels": labels, **asked}
    yield accepted("three-axes", "(N, C, d): the classes are axis 1.", request, binary=True)
    request = {"logits": WAVES[:24].reshape(3, 2, 4).tolist(), "labels": labels, "class_axis": -1, **asked}
    yield accepted("class-axis-last", "(N, T, C), as language models have them.", request, binary=True)
    request = {
        "logits": WAVES[:24].reshape(2, 3, 2, 2).tolist(),
        "labels": [[[0, 1], [2, 0]], [[1, 1], [0, 2]]],
        **asked,
    }
    yield accepted("four-axes", "(N, C, d1, d2).", {**request, "sample_weight": [[[1, 2], [0, 1]], [[3, 1], [1, 1]]]})
    request = {"logits": [0.5, -1.5, 2.0], "labels": 1, "include": OUTPUTS}
    yield accepted("one-row", "(C) and a single label: what belongs to rows is a number.", request, binary=True)
    request = {"logits": tensor_object(np.zeros((0, 3)), "F32"), "labels": tensor_object(np.zeros(0), "I64"), **asked}
    yield accepted("no-rows", "The mean of nothing is NaN.", request, warnings={"all_ignored": []})
    request = {"logits": [[1.5], [-0.5]], "labels": [0, 0], "include": ["loss", "losses", "gradients", "margin"]}
    yield accepted("one-class", "Nothing to lose, and no other class.", request)


def dtype_vectors() -> Iterator[Fields]:
    """Tensor objects in requests and answers. Base64 answers are chosen so that no rounding enters: equal strings."""
    logits, asked = np.array(TINY["logits"]), {"include": ["loss", "losses", "gradients", "logsumexp"]}
    request: Fields
    for name in ("F32", "F16", "BF16"):
        request = {"logits": tensor_object(logits, name), "labels": [2, 1], **asked}
        yield accepted(f"logits-{name.lower()}", "The answer is float32.", request)
    request = {"logits": tensor_object(WAVES[:6].reshape(2, 3), "F64"), "labels": [2, 1], **asked}
    yield accepted("logits-f64", "Computed and answered in float64.", request, tolerance="F64")
    for name in ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8"):
        request = {**TINY, "labels": tensor_object(TINY["labels"], name)}
        yield accepted(f"labels-{name.lower()}", "Every integer dtype labels the same.", request)
    soft = tensor_object([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]], "BF16")
    yield accepted("labels-bf16", "Probabilities of a dtype of their own.", {**TINY, "labels": soft})
    for name in ("F64", "F32", "F16", "BF16"):
        request = {**TINY, "include": ["gradients"], "gradient_dtype": name}
        tolerance = name if name in {"F16", "BF16"} else ""
        yield accepted(f"gradients-{name.lower()}", "Rounded to this dtype.", request, tolerance=tolerance)
    for name in ("F64", "F32", "F16", "BF16"):
        request = {
            "logits": [[0, 0], [0, 0]],
            "labels": [0, 1],
            "include": ["gradients", "probabilities", "predictions"],
        }
        request |= {"reduction": "sum", "gradient_dtype": name, "encoding": "base64"}
        yield accepted(f"base64-gradients-{name.lower()}", "Arrays are tensor objects.", request)
    request = {"logits": [[3, "-Infinity"], ["-Infinity", 2]], "labels": [0, 1], "z_loss": 0.5, "encoding": "base64"}
    request["include"] = ["loss", "losses", "logsumexp", "entropy"]
    yield accepted("base64-losses", "Numbers stay numbers.", request)


def edge_vectors() -> Iterator[Fields]:
    """Non-finite numbers, warnings, and where the obvious formula fails."""

    def asked(logits: object, labels: object, **options: object) -> Fields:
        return {"logits": logits, "labels": labels, "include": WITH_GRADIENTS, **options}

    request = asked([[20, 0, 1], [0, 30, -5]], [0, 1])
    yield accepted("confident", "Tiny losses keep their digits.", request, tolerance="tiny")
    request = asked([[10000.5, 10002.25], [-50000, -50001]], [0, 1])
    yield accepted("offset", "A constant added to a row changes nothing.", request)
    yield accepted("masked-class", "-Infinity takes a class out.", asked(MASKED, [0, 1]))
    request = asked(MASKED, [1, 1])
    about = "A label on a masked class costs infinitely much."
    yield accepted("masked-label", about, request, warnings={"nonfinite_loss": [0]})
    request = asked(MASKED, [0, 1], label_smoothing=0.1)
    yield accepted("masked-smoothing", "So does smoothing.", request, warnings={"nonfinite_loss": [0]})
    request = asked(MASKED, [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
    yield accepted("masked-probability-zero", "A probability of 0 there costs nothing.", request)
    broken = [[1, "NaN", 2], [1, 2, 3], ["Infinity", 0, 0], ["-Infinity", "-Infinity", "-Infinity"]]
    both = {"nonfinite_logits": [0, 2, 3], "nonfinite_loss": [0, 2, 3]}
    about = "Broken rows are NaN, the others are not."
    yield accepted("broken-rows", about, asked(broken, [0, 1, 2, 0]), warnings=both)
    yield accepted("broken-rows-ignored", "Ignored rows may hold anything.", asked(broken, [-100, 1, -100, -100]))
    request = asked(broken, [0, 1, 2, 0], sample_weight=[0, 1, 0, 0])
    yield accepted("broken-rows-of-weight-zero", "So may rows that weigh nothing.", request)
    request = asked(README["logits"], [-100] * 3)
    about = "Nothing counts: the mean is NaN, the gradients are 0."
    yield accepted("all-ignored", about, request, warnings={"all_ignored": [0, 1, 2]})
    request = asked(README["logits"], [0, 1, 2], weight=[0, 0, 0, 1])
    yield accepted("no-weight-left", "The same.", request, warnings={"all_ignored": [0, 1, 2]})
    request = asked(README["logits"], [[0.7, 0.1, 0.1, 0.2], SOFT[1], SOFT[2]])
    about = "Used as given, with a warning."
    yield accepted("labels-not-normalized", about, request, warnings={"labels_not_normalized": [0]})
    request = asked([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]], [0, 1])
    about = "Softmax was probably applied twice."
    yield accepted("softmax-twice", about, request, warnings={"logits_look_like_probabilities": [0, 1]})


def summary_vectors() -> Iterator[Fields]:
    """Plain statistics, whatever the options."""
    request = {"logits": WAVES.reshape(6, 7).tolist(), "labels": [2, 0, 3, 1, -100, 5], "include": ["summary"]}
    about = "Unweighted and unsmoothed, without the ignored row; top5_accuracy from six classes on."
    yield accepted("summary", about, {**request, "weight": [1, 2, 3, 4, 5, 6, 7], "label_smoothing": 0.1})
    request = {**README, "labels": SOFT, "include": ["summary"]}
    yield accepted("summary-probabilities", "With label_entropy and kl_divergence.", request)
    request = {"logits": [0.5, -1.5, 2.0], "labels": 2, "include": ["summary"]}
    yield accepted("summary-one-row", "One row has no standard error: NaN.", request)


def monitoring_vectors() -> Iterator[Fields]:
    """What the service's metrics count the samples under; the answer is that of the plain request."""
    said = {"model": "digits", "version": "2", "segment": "web", "predicted_at": "2026-01-31T08:00:00Z"}
    yield accepted("monitored", "Says whose logits these are.", {**README, **said, "monitor": True}, binary=True)
    yield accepted("not-monitored", "Old samples, evaluated again.", {**README, **said, "monitor": False}, binary=True)


def refused_vectors() -> Iterator[Fields]:
    """Problem documents: status, code and places."""
    invalid, mismatch = (422, "invalid_value"), (422, "shape_mismatch")
    two = {"logits": [[1, 2, 3], [4, 5, 6]], "labels": [0, 1]}

    def changed(**fields: object) -> Fields:
        return {**two, **fields}

    def at(name: str, pointer: str, problem: tuple[int, str], about: str, **fields: object) -> Fields:
        return refused(name, about, changed(**fields), problem, pointer)

    yield at("unknown-field", "#/ignoreindex", (400, "unknown_field"), "A misspelt option.", ignoreindex=1)
    request = {"logits": two["logits"]}
    yield refused("missing-labels", "Always required.", request, (422, "missing_field"), "#/labels")
    yield at("invalid-reduction", "#/reduction", invalid, "Not PyTorch's name.", reduction="average")
    yield at("invalid-smoothing", "#/label_smoothing", invalid, "Above 1.", label_smoothing=1.5)
    yield at("invalid-temperature", "#/temperature", invalid, "Not above 0.", temperature=0)
    yield at("invalid-class-axis", "#/class_axis", invalid, "1 or -1.", class_axis=2)
    yield at("invalid-include", "#/include/1", invalid, "No such output.", include=["loss", "accuracy"])
    yield at("nothing-included", "#/include", invalid, "At least one output.", include=[])
    yield at("null-logit", "#/logits/0/1", invalid, "Null is no number.", logits=[[1, None, 3], [4, 5, 6]])
    yield at("text-logit", "#/logits/0/1", invalid, "Nor is a string.", logits=[[1, "2", 3], [4, 5, 6]])
    yield at(
        "overflow", "#/logits/1/0", (422, "number_out_of_range"), "Not a float32.", logits=[[1, 2, 3], [1e39, 5, 6]]
    )
    yield at("ragged", "#/logits/1", mismatch, "Rows of different lengths.", logits=[[1, 2, 3], [4, 5]])
    yield at("labels-too-many", "#/labels", mismatch, "A label too many.", labels=[0, 1, 2])
    yield at("labels-float", "#/labels", (422, "unsupported_dtype"), "Indices are integers.", labels=[0.5, 1.5])
    request = changed(labels=[0, 3])
    problem = (422, "label_out_of_range")
    yield refused("label-out-of-range", "One past the last.", request, problem, "#/labels/1", errors_omitted=0)
    request = {"logits": [[0, 0]] * 12, "labels": [7] * 12}
    first = [f"#/labels/{row}" for row in range(10)]
    yield refused("labels-out-of-range", "Ten places are named.", request, problem, *first, errors_omitted=2)
    request = {"logits": [[[0, 0], [0, 0], [0, 0]]] * 2, "labels": [[0, 2], [-1, 3]]}
    places = ["#/labels/1/0", "#/labels/1/1"]
    yield refused("label-of-two-axes", "One step an axis.", request, problem, *places)
    yield at("weight-length", "#/weight", mismatch, "One number a class.", weight=[1, 1])
    yield at("weight-negative", "#/weight/1", invalid, "At least 0.", weight=[1, -1, 1])
    yield at("weight-nan", "#/weight/1", invalid, "Finite.", weight=[1, "NaN", 1])
    yield at("sample-weight-shape", "#/sample_weight", mismatch, "One number a row.", sample_weight=[1, 1, 1])
    yield at("grad-output-shape", "#/grad_output", mismatch, "A number, unless reduction is none.", grad_output=[1, 1])
    soft = {"labels": [[0.5, 0.5, 0], [0, 0, 1]]}
    yield at("ignored-probabilities", "#/ignore_index", invalid, "Goes with indices.", ignore_index=1, **soft)
    yield at("not-probabilities", "#/logits/0", invalid, "Row 0 sums to 1.5.", input="probabilities",
             logits=[[0.5, 0.5, 0.5], [0.5, 0.25, 0.25]])  # fmt: skip
    yield at("no-gradients", "#/include", invalid, "Of logits only.", input="log_probabilities", include=["gradients"])
    time = "2026-01-31T08:00:00"
    yield at("time-without-offset", "#/predicted_at", invalid, "An hour of unknown place.", predicted_at=time)
    yield at("model-number", "#/model", invalid, "Names are strings.", model=7)
    whole = tensor_object([[1, 2, 3], [4, 5, 6]], "F32")
    yield at("tensor-too-short", "#/logits/data", invalid, "20 bytes.", logits={**whole, "data": whole["data"][:28]})
    yield at("tensor-not-base64", "#/logits/data", invalid, "Not base64.", logits={**whole, "data": "!" * 32})
    unsupported = (422, "unsupported_dtype")
    yield at("tensor-dtype", "#/logits/dtype", unsupported, "No such dtype.", logits={**whole, "dtype": "F8_E4M3"})
    yield at("tensor-key", "#/logits/order", (400, "unknown_field"), "No such key.", logits={**whole, "order": "C"})


if __name__ == "__main__":
    sys.stdout.write(document())
