"""What one run found, to be saved, read again, and shown as tables or as a plot."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from benchmarks.report import Table


@dataclasses.dataclass(frozen=True, slots=True)
class Results:
    """The tables of each section, and what the figures depend on besides the code."""

    environment: Mapping[str, str | int]
    is_quick: bool
    seconds: float
    sections: Mapping[str, Sequence[Table]]

    @property
    def has_wrong_answers(self) -> bool:
        """Whether a server answered wrongly under load."""
        return any(
            line.get("wrong answers") for tables in self.sections.values() for table in tables for line in table.rows
        )

    @property
    def about(self) -> str:
        """The environment and the time it took, in one line."""
        facts = [f"{name} {value}" for name, value in self.environment.items()]
        return f"{', '.join(facts)}; {'--quick, ' if self.is_quick else ''}{self.seconds:.0f} s"

    def of(self, sections: Sequence[str]) -> Self:
        """Returns the part that belongs to some sections."""
        kept = {name: tables for name, tables in self.sections.items() if name in sections}
        return dataclasses.replace(self, sections=kept)

    def save(self, file: Path) -> None:
        """Writes every number as JSON."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> Self:
        """Reads what `save` wrote."""
        saved: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        saved["sections"] = {name: [Table(**table) for table in tables] for name, tables in saved["sections"].items()}
        return cls(**saved)
