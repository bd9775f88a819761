"""Whether nested lists are as long as they should be, told by the brackets and commas of a JSON text alone.

simdjson flattens [[1, 2], [3, [4]]] as readily as [[1, 2], [3, 4]], and to look at each list takes longer than to parse
the text did. The text has to be valid, without brackets in its strings. Marks can't tell [] from [1]: the caller counts
the numbers, too.
"""

from abc import ABC, abstractmethod

import numpy as np

from ..dtypes import Buffer

_OPENING, _CLOSING, _COMMA = b"[],"
_UNMARKED = bytes({*range(256)} - {*b"[],"})
_SHORT_BYTES = 4096
_LONG_LIST_BYTES = 256
"""A call of numpy for each list is quicker than a look at each byte from about here on."""
_PIECE_BYTES = 1 << 20


class Lists(ABC):
    """The lists of a text, one after the other."""

    _passed = 0

    def __init__(self, marks: bytes) -> None:
        self._marks = marks

    def skip(self) -> None:
        """Passes the next list, one without lists in it."""
        self._passed = self._marks.find(b"]", self._passed) + 1

    @abstractmethod
    def are_even(self, shape: tuple[int, ...]) -> bool:
        """Passes the next list, and tells whether it and all lists in it certainly have these lengths."""


def lists_of(body: Buffer) -> Lists:
    """Looks at the lists of a text in the way that is the quicker one for as many as there are."""
    if len(body) <= _SHORT_BYTES:
        return _ManyLists(body)
    text = np.frombuffer(body, np.uint8)
    count = sum(np.count_nonzero(text[at : at + _PIECE_BYTES] == _OPENING) for at in range(0, len(text), _PIECE_BYTES))
    return _ManyLists(body) if len(body) < _LONG_LIST_BYTES * count else _LongLists(body)


class _ManyLists(Lists):
    """Compares all marks of the text with those there must be."""

    def __init__(self, body: Buffer) -> None:
        super().__init__(bytes(body).translate(None, _UNMARKED))

    def are_even(self, shape: tuple[int, ...]) -> bool:
        start = self._marks.find(b"[", self._passed)
        expected = b""
        for size in reversed(shape):
            if (len(expected) + 1) * size > len(self._marks):
                return False
            expected = b"[%b]" % ((expected + b",") * size)[:-1]
        self._passed = start + len(expected)
        return self._marks.startswith(expected, start)


class _LongLists(Lists):
    """Compares the brackets with those there must be, and counts the commas of each innermost list."""

    def __init__(self, body: Buffer) -> None:
        self._text = text = np.frombuffer(body, np.uint8)
        pieces = [
            at + np.flatnonzero((text[at : at + _PIECE_BYTES] == _OPENING) | (text[at : at + _PIECE_BYTES] == _CLOSING))
            for at in range(0, len(text), _PIECE_BYTES)
        ]
        self._places = np.concatenate(pieces)
        super().__init__(text[self._places].tobytes())

    def are_even(self, shape: tuple[int, ...]) -> bool:
        *outer, length = shape
        expected = b"[]"
        for size in reversed(outer):
            if len(expected) * size > len(self._marks):
                return False
            expected = b"[%b]" % (expected * size)
        start = self._passed
        self._passed += len(expected)
        # Lists of one have no comma by which a number beside them could be told from one inside.
        if length < 2 or not self._marks.startswith(expected, start):  # noqa: PLR2004
            return False
        places = self._places[start : self._passed]
        lists = np.flatnonzero(self._text[places[1:]] > self._text[places[:-1]])  # where one opens and closes
        return all(
            np.count_nonzero(self._text[opening:closing] == _COMMA) == length - 1
            for opening, closing in zip(places[lists], places[lists + 1], strict=True)
        )
