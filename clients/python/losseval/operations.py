"""What can be asked of the service: arguments to calls, answers to results. No I/O."""

import difflib
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Literal, TypedDict
from urllib.parse import urlencode

import numpy as np

from .arrays import Tensor, TensorLike
from .exchange import Call, Reply
from .results import CrossEntropyResult, EvaluationWarning, Meta
from .wire import JSON, SAFETENSORS, decode, encode_json, encode_safetensors

Include = Literal[
    "loss",
    "losses",
    "gradients",
    "nll",
    "probabilities",
    "logsumexp",
    "entropy",
    "margin",
    "gradient_norm",
    "predictions",
    "summary",
]
DEFAULT_INCLUDE: tuple[Include, ...] = ("loss", "losses")
_ARRAYS = frozenset({"weight", "sample_weight", "grad_output"})
_LOCAL = frozenset({"include", "ids", "timeout", "request_id"})
_DEFAULTS: dict[str, object] = {"input": "logits", "ignore_index": -100, "label_smoothing": 0, "temperature": 1, "z_loss": 0}
_DEFAULTS |= {"reduction": "mean", "class_axis": 1, "precision": "standard", "grad_output": 1}


class Options(TypedDict, total=False):
    """Options of an evaluation. None is the same as leaving one out.

    Attributes:
        include: The outputs to compute, names of `CrossEntropyResult`; by default loss and losses.
        weight: Per class, finite and ≥ 0.
        sample_weight: Per sample, finite and ≥ 0.
        grad_output: Upstream gradient, a number, or with reduction none one a sample; by default 1.
        ignore_index: Labels equal to it count for nothing; by default −100.
        label_smoothing: 0 to 1, the share of the label that all classes get alike.
        temperature: Above 0; the loss is that of logits / temperature.
        z_loss: ≥ 0, adds z_loss · logsumexp² to each loss.
        reduction: Of `loss` and `gradients`; by default the mean. With none there is no `loss`.
        class_axis: 1 as in PyTorch, or −1 if the classes come last.
        input: What the logits are, if not logits; then there are no gradients.
        precision: high computes in float64 whatever came in.
        gradient_dtype: By default F32, F64 for F64 logits.
        ids: One a sample, for `table`, `top` and `compare`; they stay here.
        timeout: Seconds, instead of the client's.
        request_id: At most 64 letters, digits and ``._-``, what the service's log says; made up by default.
    """

    include: Iterable[Include]
    weight: TensorLike
    sample_weight: TensorLike
    grad_output: float | TensorLike
    ignore_index: int | None
    label_smoothing: float | None
    temperature: float | None
    z_loss: float | None
    reduction: Literal["mean", "sum", "none"] | None
    class_axis: Literal[1, -1] | None
    input: Literal["logits", "log_probabilities", "probabilities"] | None
    precision: Literal["standard", "high"] | None
    gradient_dtype: Literal["F32", "F64", "F16", "BF16"] | None
    ids: Sequence[Any] | None
    timeout: float | None
    request_id: str | None


INFO: Call[dict[str, Any]] = Call("GET", "/v1/info", lambda reply, _: dict(json.loads(reply.body)))
READY: Call[bool] = Call("GET", "/readyz", lambda reply, _: reply.status_code == HTTPStatus.OK, accepts=(200, 503))


def cross_entropy(logits: TensorLike, labels: TensorLike, wire: str, options: Options) -> Call[CrossEntropyResult]:
    """Builds the call; what is a default is not sent.

    Raises:
        TypeError: There is no such option, or a dtype can't be sent.
    """
    for name in options.keys() - Options.__annotations__.keys():
        near = difflib.get_close_matches(name, Options.__annotations__, 1)
        raise TypeError(f"there is no option {name!r}" + "".join(f"; did you mean {other!r}?" for other in near))
    tensors, scalars = {"logits": Tensor.of("logits", logits), "labels": Tensor.of("labels", labels)}, {}
    for name, value in options.items():
        if value is None or name in _LOCAL:
            continue
        if name in _ARRAYS and not isinstance(value, int | float):
            tensors[name] = Tensor.of(name, value)
        elif value != _DEFAULTS.get(name):
            scalars[name] = value.item() if isinstance(value, np.generic) else value
    include = options.get("include", DEFAULT_INCLUDE)
    outputs = (include,) if isinstance(include, str) else tuple(include)
    if outputs != DEFAULT_INCLUDE:
        scalars["include"] = outputs
    path, media_type = "/v1/cross-entropy", JSON if wire == "json" else SAFETENSORS
    if wire == "json":
        parts = encode_json(tensors, scalars)
    else:
        parts = encode_safetensors(tensors)
        path += _query(scalars)
    read = functools.partial(_read_result, tensors=tensors, options=options)
    return Call("POST", path, read, media_type=media_type, parts=parts, request_id=options.get("request_id"))


def _query(scalars: Mapping[str, Any]) -> str:
    texts = {name: ",".join(value) if name == "include" else value for name, value in scalars.items()}
    return "?" + urlencode(texts, safe=",") if texts else ""


def _read_result(reply: Reply, meta: Meta, *, tensors: Mapping[str, Tensor], options: Options) -> CrossEntropyResult:
    outputs = decode(reply.headers.get("content-type", "").partition(";")[0], reply.body)
    sums = {name: outputs.pop(name) for name in ("loss_sum", "normalizer", "count", "ignored")}
    warnings = tuple(EvaluationWarning(**warning) for warning in outputs.pop("warnings"))
    labels = _describe_labels(tensors, options, outputs)
    return CrossEntropyResult(outputs, **sums, warnings=warnings, meta=meta, **labels)


def _describe_labels(tensors: Mapping[str, Tensor], options: Options, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a result keeps of its labels, a copy: the caller may go on to change them."""
    labels, shape = tensors["labels"], tensors["logits"].array.shape
    axis = 0 if len(shape) == 1 else options.get("class_axis") or 1
    if labels.array.ndim < len(shape):
        ignore_index = options.get("ignore_index")
        about = {"labels": labels.array.copy(), "ignore_index": -100 if ignore_index is None else ignore_index}
        if "summary" in outputs:
            kept = labels.array[labels.array != about["ignore_index"]].astype(np.int64)
            about["label_counts"] = np.bincount(kept, minlength=shape[axis])
    else:
        wide = labels.widen()
        about = {"labels": wide.argmax(axis)} if "nll" in outputs else {}
        if "summary" in outputs:
            about["label_counts"] = np.moveaxis(wide, axis, -1).reshape(-1, shape[axis]).sum(0, dtype=np.float64)
    return about
