"""Pointing at the elements that are wrong, the first few of them."""

from collections.abc import Callable

import numpy as np

from ..dtypes import Array
from ..errors import MAX_FINDINGS, Finding, ServiceError


def error_at(  # noqa: PLR0913 - what is wrong, where, and how to say it
    kind: type[ServiceError],
    name: str,
    summary: str,
    *,
    bad: Array,
    shape: tuple[int, ...],
    describe: Callable[[int], str],
) -> ServiceError:
    """Builds an error about elements of an array.

    Args:
        kind: The error's class.
        name: The field.
        summary: What is wrong as a whole, without a full stop.
        bad: Mask of the offending elements, flat in C order.
        shape: The field's own shape, for the pointers.
        describe: Says what is wrong with the element of a flat index.
    """
    places = np.flatnonzero(bad)
    findings = [Finding(f"#/{name}{_path(place, shape)}", describe(place)) for place in places[:MAX_FINDINGS].tolist()]
    return kind(f"{summary}.", errors=findings, errors_omitted=len(places) - len(findings))


def shape_text(shape: tuple[int, ...]) -> str:
    """Writes a shape the way numpy and torch print it."""
    return f"({shape[0]},)" if len(shape) == 1 else str(tuple(shape))


def _path(place: int, shape: tuple[int, ...]) -> str:
    return "".join(f"/{index}" for index in np.unravel_index(place, shape)) if shape else ""
