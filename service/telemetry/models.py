"""The models whose losses are counted by name, declared in MODELS_FILE; whatever else is named counts as `other`."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from ..followed_file import FollowedFile

OTHER = "other"
MAX_PAIRS = 50
MAX_SEGMENTS = 20
MAX_CLASSES = 50
"""More classes than this are not told apart: each is two series."""
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(\d+)([smhdw])")


def _seconds(duration: object) -> int:
    match = _DURATION.fullmatch(duration) if isinstance(duration, str) else None
    if match is None or not int(match[1]):
        raise ValueError("must be a duration such as 30s, 15m, 6h, 1d or 1w")
    return int(match[1]) * _SECONDS[match[2]]


def _text(name: object) -> object:
    if isinstance(name, int | float):
        raise ValueError(f'must be text: write "{name}" in quotes, or YAML makes a number of it')  # noqa: TRY004 - pydantic's protocol
    if name == OTHER:
        raise ValueError(f"{OTHER!r} stands for all that is not declared; choose another name")
    return name


Name = Annotated[str, BeforeValidator(_text), StringConstraints(min_length=1, max_length=128)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Baseline(_Declared):
    """The negative log-likelihood (nats) and accuracy on data for which the model was found good."""

    mean: Positive
    stddev: Positive
    accuracy: float | None = Field(None, ge=0, le=1)


class Model(_Declared):
    """A model, or some versions of it."""

    model: Name
    versions: tuple[Name, ...] = ()
    classes: int | None = Field(None, ge=1)
    segments: tuple[Name, ...] = Field((), max_length=MAX_SEGMENTS)
    temperature: float = Field(1.0, ge=1e-3, le=1e3)
    baseline: Baseline | None = None
    label_interval: Annotated[int | None, BeforeValidator(_seconds)] = None
    """Seconds between two bursts of labels."""

    @property
    def counted_classes(self) -> int | None:
        """How many classes are told apart; None for not at all."""
        return self.classes if self.classes and self.classes <= MAX_CLASSES else None

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yields model and version; without versions, the empty one."""
        return ((self.model, version) for version in self.versions or ("",))


class Models(_Declared):
    """All declared models."""

    models: tuple[Model, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_pairs(self) -> "Models":
        pairs = [pair for model in self.models for pair in model.pairs()]
        for index, (model, version) in enumerate(pairs):
            if (model, version) in pairs[:index]:
                message = f"model {model!r}, version {version!r} is declared twice"
                raise ValueError(message)
        for one, other in itertools.combinations(self.models, 2):
            if one.model == other.model and (one.classes, one.label_interval) != (other.classes, other.label_interval):
                message = f"the entries of model {one.model!r} differ in classes or label_interval"
                raise ValueError(message)
        if len(pairs) > MAX_PAIRS:
            message = f"{len(pairs)} pairs of model and version; at most {MAX_PAIRS} are told apart"
            raise ValueError(message)
        return self

    def by_pair(self) -> Mapping[tuple[str, str], Model]:
        """Returns the declarations by model and version."""
        return {pair: model for model in self.models for pair in model.pairs()}


def follow(path: Path, declare: Callable[[Models | None], None]) -> FollowedFile:
    """Keeps the declarations of a file in force; `declare` is told by None that newer ones are bad.

    Raises:
        ValueError: It can't be read, or is not good.
    """
    return FollowedFile(
        path, lambda content: declare(parse(content)), title="--models-file", when_bad=lambda: declare(None)
    )


def parse(content: bytes) -> Models:
    """Reads MODELS_FILE.

    Raises:
        ValueError: It is not YAML, or not what is expected; the message says where.
    """
    try:
        return Models.model_validate(yaml.safe_load(content))
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from None
    except ValidationError as error:
        places = [
            f"{'.'.join(map(str, one['loc'])) or 'models'}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors()
        ]
        raise ValueError("; ".join(places[:5])) from None
