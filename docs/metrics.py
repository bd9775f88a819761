"""Writes the table of metrics in monitoring.md anew: `python docs/metrics.py`, from the top folder."""  # noqa: INP001 - a script, not a package

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from service.telemetry.metrics import Metrics  # noqa: E402 - the package lies beside this folder, not in it
from service.telemetry.models import parse  # noqa: E402
from service.telemetry.record import RequestRecord  # noqa: E402

DOCUMENT = ROOT / "docs" / "monitoring.md"
_MARKED = re.compile(r"(<!-- metrics[^>]*-->\n).*?(<!-- /metrics -->)", re.DOTALL)
_MODELS = b"""
models:
  - {model: m, classes: 2, segments: [s], baseline: {mean: 1, stddev: 1, accuracy: 1}, label_interval: 1d}
"""


def table() -> str:
    """Returns the metrics of the service, those of CUDA included, as Markdown."""
    lines = ["| metric (`losseval_…`) | type | labels | |", "|---|---|---|---|"]
    memory = SimpleNamespace(total_memory=0)
    with patch.multiple(
        "torch.cuda",
        memory_allocated=lambda _: 0,
        memory_reserved=lambda _: 0,
        get_device_properties=lambda _: memory,
    ):
        metrics = Metrics(version="", device="cuda:0", wires=["json"], reasons=[""], closers=[""])
        metrics.models.declare(parse(_MODELS))
        metrics.request(RequestRecord("", "GET", 0.0))
        families = [family for family in metrics.registry.collect() if family.name.startswith("losseval_")]
    for family in families:
        labels = {label: None for sample in family.samples for label in sample.labels if label != "le"}
        name = family.name.removeprefix("losseval_") + ("_total" if family.type == "counter" else "")
        lines.append(f"| `{name}` | {family.type} | {', '.join(labels)} | {family.documentation} |")
    return "\n".join(lines) + "\n"


def written(text: str) -> str:
    """Returns the document with its table made anew."""
    return _MARKED.sub(lambda found: found[1] + table() + found[2], text)


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
