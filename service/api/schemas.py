"""What a request and its answer look like: validated field by field, and the source of the OpenAPI document.

The arrays are documented here but not validated here: they go straight into numpy.
"""

import contextlib
import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from typing_extensions import TypeAliasType

from ..dtypes import BY_NAME, FLOATS, WEIGHTS
from ..errors import Finding, InvalidValue, MissingField, ServiceError, UnknownField
from ..loss.options import (
    DEFAULT_IGNORE_INDEX,
    DEFAULT_INCLUDE,
    FloatName,
    InputKind,
    LossOptions,
    Output,
    Precision,
    Reduction,
)
from ..telemetry.model_metrics import Named

Encoding = Literal["array", "base64"]
NonFinite = Literal["NaN", "Infinity", "-Infinity"]
NestedNumbers = TypeAliasType("NestedNumbers", "float | NonFinite | list[NestedNumbers]")
Nested = TypeAliasType("Nested", "float | list[Nested]")


class TensorObject(BaseModel):
    """A tensor for any language without a tensor library."""

    model_config = ConfigDict(extra="forbid")

    dtype: Literal[tuple(BY_NAME)] = Field(description="The dtype by safetensors' name.")  # type: ignore[valid-type]
    shape: list[Annotated[int, Field(ge=0)]] = Field(max_length=16, examples=[[3, 4]])
    data: str = Field(
        description="The elements in C order, little-endian, as padded base64.",
        json_schema_extra={"contentEncoding": "base64"},
    )


class Options(BaseModel):
    """The scalar fields of a request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: InputKind = Field(
        "logits",
        description="What `logits` holds. Probabilities: each row in [0, 1] and summing to 1 within 1e-3; the loss is "
        "taken of their logarithm. Gradients exist for `logits` only.",
    )
    ignore_index: int | None = Field(
        None,
        ge=-(2**63),
        lt=2**63,
        description="Index labels equal to it contribute nothing. Not together with probability labels.",
        json_schema_extra={"default": DEFAULT_IGNORE_INDEX},
    )
    label_smoothing: float = Field(
        0.0, ge=0, le=1, allow_inf_nan=False, description="The share of the label given to all classes alike."
    )
    temperature: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="The loss is taken of logits / temperature; gradients are with respect to the logits sent.",
    )
    z_loss: float = Field(0.0, ge=0, allow_inf_nan=False, description="Adds z_loss * logsumexp^2 per sample.")
    reduction: Reduction = Field(
        "mean",
        description="Of `loss` and `gradients`. `none`: no `loss`, and the gradients of sum(grad_output * losses).",
    )
    class_axis: Literal[1, -1] = Field(1, description="Where the classes are: PyTorch's axis 1, or the last.")
    include: list[Output] = Field(list(DEFAULT_INCLUDE), min_length=1, description="What to compute and return.")
    precision: Precision = Field("standard", description="`high` computes in float64 whatever came in.")
    gradient_dtype: FloatName | None = Field(
        None, description="Dtype of `gradients`; F32 by default, F64 for F64 logits."
    )
    encoding: Encoding = Field("array", description="base64: tensors of rank >= 1 in the response are tensor objects.")

    @field_validator("class_axis", mode="before")
    @classmethod
    def _is_integer(cls, axis: object) -> object:
        if type(axis) is not int:  # True and 1.0 equal 1
            raise ValueError("must be the integer 1 or -1")
        return axis

    @field_validator("include")
    @classmethod
    def _none_twice(cls, include: list[Output]) -> list[Output]:
        for index, name in enumerate(include):
            if name in include[:index]:
                message = f"{name} stands twice"
                raise ValueError(message)
        return include

    def loss_options(self) -> LossOptions:
        """Returns the options the engine knows."""
        fields = self.model_dump(exclude={"encoding"})
        return LossOptions(**{**fields, "include": tuple(self.include)})


Label = Annotated[str, Field(min_length=1, max_length=128)]
# RFC 3339, section 5.6; fromisoformat alone would also take dates, weeks and local times.
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")


class Origin(BaseModel):
    """Which model the logits come from: what the metrics count them under."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Label | None = Field(
        None, description="The model whose losses are counted; one that is not declared counts as `other`."
    )
    version: Label | None = Field(None, description="Its version.")
    segment: Label | None = Field(None, description="The part of the traffic, e.g. a country or a client.")
    # Documented here, and read by `_time`: it differs from request to request, and the names are validated once.
    predicted_at: datetime | None = Field(
        None, description="When the model answered (RFC 3339); until now is the label delay."
    )
    monitor: bool = Field(default=True, description="False: not counted, for back-fills.")


def _allow_null(schema: dict[str, Any]) -> None:
    """An optional field that is null is as good as absent."""
    for name, field in schema["properties"].items():
        if name not in schema["required"] and {"type": "null"} not in field.get("anyOf", ()):
            about = {key: field.pop(key) for key in ("description", "title", "default") if key in field}
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}], **about}


class CrossEntropyRequest(Options, Origin):
    """Logits and labels, and what to make of them."""

    model_config = ConfigDict(json_schema_extra=_allow_null)

    logits: NestedNumbers | TensorObject = Field(
        description=f"Shape (C), (N, C) or (N, C, d1...dk). Nested numbers are float32; tensors {', '.join(FLOATS)}."
    )
    labels: NestedNumbers | TensorObject = Field(
        description="One rank below the logits: class indices. The logits' shape: class probabilities."
    )
    weight: list[Annotated[float, Field(ge=0)]] | TensorObject | None = Field(
        None, description=f"Per class, finite and >= 0. Tensors: {', '.join(WEIGHTS)}."
    )
    sample_weight: Nested | TensorObject | None = Field(
        None, description="Per sample, finite and >= 0; the shape of the class indices."
    )
    grad_output: Nested | TensorObject | None = Field(
        None, description="Upstream gradient: a number, or with `reduction: none` also the shape of `losses`."
    )


class EvaluationWarning(BaseModel):
    """Something that was computed but deserves notice."""

    code: Literal[
        "nonfinite_logits", "nonfinite_loss", "labels_not_normalized", "all_ignored", "logits_look_like_probabilities"
    ]
    detail: str
    count: int = Field(ge=0)
    first: list[int] = Field(max_length=10, description="Flat indices into losses.")


Number = float | NonFinite
Tensor = NestedNumbers | TensorObject


class CrossEntropyResponse(BaseModel):
    """What was asked for in `include`, and the sums that let parts of a batch be merged."""

    loss: Number | None = Field(None, description="The mean or the sum; absent with `reduction: none`.")
    loss_sum: Number = Field(description="Sum of losses, in float64.")
    normalizer: float = Field(description="What `mean` divides by.")
    count: int = Field(ge=0, description="Rows not ignored.")
    ignored: int = Field(ge=0, description="Rows ignored.")
    losses: Tensor | None = Field(None, description="Per sample, weights, smoothing and z_loss included.")
    gradients: Tensor | None = Field(None, description="With respect to the logits; their shape.")
    nll: Tensor | None = Field(None, description="Per sample, plain: no weights, no smoothing, no z_loss.")
    probabilities: Tensor | None = Field(None, description="softmax(logits / temperature).")
    logsumexp: Tensor | None = None
    entropy: Tensor | None = Field(None, description="Of the predicted distribution, in nats.")
    margin: Tensor | None = Field(None, description="The label's logit minus the largest other one.")
    gradient_norm: Tensor | None = Field(None, description="The EL2N score |q - onehot(y)|.")
    predictions: Tensor | None = Field(None, description="argmax, the first on ties.")
    summary: dict[str, Any] | None = Field(None, description="Accuracy, mean nll, baselines, calibration, per class.")
    warnings: list[EvaluationWarning]


class ProblemFinding(BaseModel):
    """One offending place."""

    pointer: str = Field(examples=["#/labels/17"])
    detail: str


class Problem(BaseModel):
    """RFC 9457."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["/problems/label-out-of-range"])
    title: str
    status: int
    code: str
    detail: str
    instance: str
    request_id: str
    errors: list[ProblemFinding] | None = None
    errors_omitted: int | None = None


ORIGIN_FIELDS = frozenset(Origin.model_fields)
SCALAR_FIELDS = frozenset(Options.model_fields) | ORIGIN_FIELDS


def take_origin(fields: dict[str, object]) -> tuple[Named, datetime | None] | None:
    """Takes model, version and segment, and from when they are, out of the other fields; None for nothing to count.

    Raises:
        InvalidValue: With a pointer to each field, never its content.
    """
    if ORIGIN_FIELDS.isdisjoint(fields):
        return None
    predicted_at = _time(fields.pop("predicted_at", None))
    take = fields.pop
    given = (take("model", None), take("version", None), take("segment", None), take("monitor", True))  # noqa: FBT003 - defaults
    try:
        names = _parse_names(*given)
    except TypeError:  # a list, which has no hash
        names = _parse_names.__wrapped__(*given)
    return None if names is None else (names, predicted_at)


@lru_cache(maxsize=256, typed=True)  # to which 1 and true are not the same
def _parse_names(model: object, version: object, segment: object, monitor: object) -> Named | None:
    """Validates names once, however many requests have them; None for nothing to count."""
    try:
        origin = Origin.model_validate({"model": model, "version": version, "segment": segment, "monitor": monitor})
    except ValidationError as error:
        raise _translated(error) from None
    is_counted = origin.monitor and origin.model is not None
    return (origin.model, origin.version, origin.segment) if is_counted else None


def _time(text: object) -> datetime | None:
    with contextlib.suppress(ValueError):  # the 31st of February
        if text is None or (isinstance(text, str) and _RFC3339.fullmatch(text)):
            return None if text is None else datetime.fromisoformat(text.upper())
    raise InvalidValue.at("#/predicted_at", "must be a time with its offset as in RFC 3339: 2026-01-31T12:00:00Z")


def parse_options(fields: Mapping[str, object]) -> tuple[LossOptions, Encoding]:
    """Validates the scalar fields; what they say of the loss, and of its encoding.

    Raises:
        UnknownField, MissingField, InvalidValue: With a pointer to each field, never its content.
    """
    return _parse_options(orjson.dumps(fields))


@lru_cache(maxsize=256)
def _parse_options(fields: bytes) -> tuple[LossOptions, Encoding]:
    """Validates options once, however many requests have them; as bytes, in which 1, 1.0 and true differ."""
    try:
        options = Options.model_validate(orjson.loads(fields))
    except ValidationError as error:
        raise _translated(error) from None
    return options.loss_options(), options.encoding


_KINDS: dict[str, type[ServiceError]] = {"extra_forbidden": UnknownField, "missing": MissingField}


def _translated(error: ValidationError) -> ServiceError:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    findings = [
        Finding(
            "#" + "".join(f"/{part}" for part in one["loc"] if part not in {"int", "float"}),
            one["msg"].removeprefix("Value error, "),
        )
        for one in found
    ]
    kind = _KINDS.get(found[0]["type"], InvalidValue)
    return kind("; ".join(f"{one.pointer}: {one.detail}" for one in findings[:3]), errors=findings)
