"""What can be asked of the service: arguments to calls, answers to results. No I/O."""

import difflib
import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from http import HTTPStatus
from typing import Any, Literal, TypedDict
from urllib.parse import urlencode

import numpy as np

from .arrays import Tensor, TensorLike
from .exchange import Call, Reply
from .results import CrossEntropyResult, EvaluationWarning, Meta
from .wire import JSON, SAFETENSORS, decode, encode_json, encode_safetensors

_Diagnostic = Literal["nll", "predictions", "probabilities", "margin", "entropy", "logsumexp", "gradient_norm"]
Output = Literal["loss", "losses", "gradients", "summary"] | _Diagnostic
_ARRAYS = ("weight", "sample_weight", "grad_output")
_LOCAL = ("ids", "timeout", "request_id")
DEFAULT_INCLUDE = ("loss", "losses")
_DEFAULTS: dict[str, object] = {"ignore_index": -100, "label_smoothing": 0, "class_axis": 1, "precision": "standard"}
_DEFAULTS |= {"temperature": 1, "z_loss": 0, "input": "logits", "reduction": "mean", "grad_output": 1, "monitor": True}


class Options(TypedDict, total=False):
    """Options of an evaluation; None is the same as leaving one out."""

    include: Sequence[Output]  # the outputs to compute; by default loss and losses
    weight: TensorLike  # per class, ≥ 0
    sample_weight: TensorLike  # per sample, ≥ 0
    grad_output: float | TensorLike  # upstream gradient; a number, or with reduction none one a sample
    ignore_index: int | None  # labels equal to it count for nothing; by default −100
    label_smoothing: float | None  # 0 to 1, the share of a label that goes to all classes alike
    temperature: float | None  # above 0; the loss is that of logits / temperature
    z_loss: float | None  # ≥ 0; adds z_loss · logsumexp² to each loss
    reduction: Literal["mean", "sum", "none"] | None  # of loss and gradients; with none there is no loss
    class_axis: Literal[1, -1] | None  # 1 as in PyTorch, or −1 if the classes come last
    input: Literal["logits", "log_probabilities", "probabilities"] | None  # what the logits are
    precision: Literal["standard", "high"] | None  # high computes in float64 whatever came in
    gradient_dtype: Literal["F32", "F64", "F16", "BF16"] | None  # by default F32, F64 for F64 logits
    model: str | None  # whose logits these are: the service's metrics count the samples of those it was told of
    version: str | None  # of the model
    segment: str | None  # the part of the traffic that the samples come from
    predicted_at: datetime | str | None  # when the model answered, with a time zone; a str as RFC 3339 has it
    monitor: bool | None  # False: metrics don't count this, e.g. old samples evaluated again
    ids: Sequence[Any] | None  # one a sample, for tables and comparisons; they stay here
    timeout: float | None  # seconds, instead of the client's
    request_id: str | None  # at most 64 letters, digits and ._-; metrics count the same one once in 10 minutes


INFO: Call[dict[str, Any]] = Call("GET", "/v1/info", lambda reply, _: dict(json.loads(reply.body)))
READY: Call[bool] = Call("GET", "/readyz", lambda reply, _: reply.status_code == HTTPStatus.OK, accepts=(200, 503))


def cross_entropy(logits: TensorLike, labels: TensorLike, wire: str, options: Options) -> Call[CrossEntropyResult]:
    """Builds the call; what is a default is not sent.

    Raises:
        TypeError: There is no such option, or a dtype can't be sent.
        ValueError: predicted_at has no time zone.
    """
    for name in options.keys() - Options.__annotations__.keys():
        near = difflib.get_close_matches(name, Options.__annotations__, 1)
        raise TypeError(f"there is no option {name!r}" + "".join(f"; did you mean {other!r}?" for other in near))
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None and name not in _LOCAL}
    include = given.pop("include", DEFAULT_INCLUDE)
    outputs = (include,) if isinstance(include, str) else tuple(include)
    arrays = {name: given.pop(name) for name in _ARRAYS if not isinstance(given.get(name, 0), int | float)}
    tensors = {name: Tensor.of(name, value) for name, value in {"logits": logits, "labels": labels, **arrays}.items()}
    scalars = {name: _to_plain(value) for name, value in given.items()}
    scalars = {name: value for name, value in scalars.items() if value != _DEFAULTS.get(name)}
    path, media_type = "/v1/cross-entropy", JSON if wire == "json" else SAFETENSORS
    if wire == "json":
        parts = encode_json(tensors, {**scalars, "include": outputs})
    else:
        parts = encode_safetensors(tensors)
        query = {name: "false" if value is False else value for name, value in scalars.items()}
        query |= {} if outputs == DEFAULT_INCLUDE else {"include": ",".join(outputs)}
        path += f"?{urlencode(query, safe=',')}" if query else ""
    read = functools.partial(_read_result, tensors=tensors, options=options)
    return Call("POST", path, read, (200,), media_type, parts, options.get("request_id"), options.get("timeout"))


def _to_plain(value: Any) -> Any:  # noqa: ANN401 - any scalar
    """Returns a scalar as JSON and a query have it."""
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, datetime):
        return value
    if value.utcoffset() is None:
        raise ValueError("predicted_at has no time zone: take datetime.now(timezone.utc), or local.astimezone()")
    return value.astimezone(timezone.utc).isoformat()


def _read_result(reply: Reply, meta: Meta, *, tensors: Mapping[str, Tensor], options: Options) -> CrossEntropyResult:
    outputs = decode(reply.headers.get("content-type", "").partition(";")[0], reply.body)
    sums: dict[str, Any] = {name: float(outputs.pop(name)) for name in ("loss_sum", "normalizer")}
    sums |= {name: int(outputs.pop(name)) for name in ("count", "ignored")}
    warnings = tuple(EvaluationWarning(**warning) for warning in outputs.pop("warnings"))
    for name, value in outputs.items():
        if name != "summary":
            outputs[name] = float(value) if name == "loss" else np.asarray(value)
    labels = _describe_labels(tensors, options, outputs)
    return CrossEntropyResult(outputs, **sums, warnings=warnings, meta=meta, **labels)


def _describe_labels(tensors: Mapping[str, Tensor], options: Options, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a result keeps of its labels, a copy: the caller may go on to change them."""
    labels, shape = tensors["labels"], tensors["logits"].array.shape
    axis = 0 if len(shape) == 1 else options.get("class_axis") or 1
    has_summary, about = "summary" in outputs, {}
    if labels.array.ndim < len(shape):
        ignore_index = options.get("ignore_index")
        about = {"labels": labels.array.copy(), "ignore_index": -100 if ignore_index is None else ignore_index}
        if has_summary:
            kept = labels.array[labels.array != about["ignore_index"]].astype(np.int64)
            about["label_counts"] = np.bincount(kept, minlength=shape[axis])
    elif has_summary or "nll" in outputs:
        rows = np.moveaxis(labels.widen(), axis, -1)
        about = {"labels": rows.argmax(-1)}
        if has_summary:
            about["label_counts"] = rows.reshape(-1, shape[axis]).sum(0, dtype=np.float64)
    return about
