"""Tables of what was measured, for people and for machines."""

import dataclasses
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

Cell = str | float | bool
Row = Mapping[str, Cell]


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Rows with the same columns; numbers stay numbers until they are printed."""

    title: str
    rows: Sequence[Row]


@dataclasses.dataclass(frozen=True, slots=True)
class Bar:
    """What a ratio must reach, or must not exceed."""

    limit: float
    is_floor: bool

    def holds(self, ratio: float) -> bool:
        """Says whether the ratio is on the right side; NaN never is."""
        return ratio >= self.limit if self.is_floor else ratio <= self.limit

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads what `str` wrote."""
        sign, limit = text.split()
        return cls(float(limit), is_floor=sign == "≥")

    def __str__(self) -> str:
        return f"{'≥' if self.is_floor else '≤'} {self.limit:g}"


def at_least(limit: float) -> Bar:
    return Bar(limit, is_floor=True)


def at_most(limit: float) -> Bar:
    return Bar(limit, is_floor=False)


def row(what: str, *, figure: float, reference: float, bar: Bar | None, is_valid: bool = True) -> Row:
    """Builds a line of a table of bars; figures that come from wrong answers hold no bar."""
    ratio = figure / reference
    return {
        "what": what,
        "figure": figure,
        "reference": reference,
        "ratio": ratio,
        "bar": str(bar or ""),
        "holds": is_valid and bar.holds(ratio) if bar else "",
    }


def number(value: float) -> str:
    """Writes a number with three digits that count."""
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def progress(message: str) -> None:
    """Says on stderr what is being measured."""
    print(f"  … {message}", file=sys.stderr, flush=True)


def render(table: Table, *, markdown: bool) -> str:
    """Writes the table with aligned columns, numbers to the right."""
    columns = list(table.rows[0])
    cells = [columns, *([_text(line[column]) for column in columns] for line in table.rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    right = [isinstance(table.rows[0][column], int | float) for column in columns]
    lines = [[_pad(*field) for field in zip(line, widths, right, strict=True)] for line in cells]
    if markdown:
        rule = ["-" * (width - 1) + (":" if flag else "-") for width, flag in zip(widths, right, strict=True)]
        body = [f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:])]
        return "\n".join([f"**{table.title}**", "", *body, ""])
    body = ["  ".join(line).rstrip() for line in lines]
    return "\n".join([table.title, "-" * len(table.title), *body, ""])


def _pad(text: str, width: int, is_right: bool) -> str:  # noqa: FBT001 - called with a zip of three
    return text.rjust(width) if is_right else text.ljust(width)


def _text(cell: Cell) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "NO"
    if isinstance(cell, str):
        return cell
    return number(cell)
