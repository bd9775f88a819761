"""`python -m benchmarks [SECTION …] [--quick] [--markdown] [--json FILE] [--plot FILE] [--from FILE]`: `make bench`."""

import argparse
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks import binary, client, codec, cuda, http, kernel, memory, monitoring, plot, start
from benchmarks.report import Table, render
from benchmarks.results import Results

Section = Callable[..., list[Table]]
SECTIONS: Final[Mapping[str, Section]] = {
    "kernel": kernel.run,
    "codec": codec.run,
    "http": http.run,
    "binary": binary.run,
    "memory": memory.run,
    "monitoring": monitoring.run,
    "start": start.run,
}
ON_DEMAND: Final[Mapping[str, Section]] = {"client": client.run, "cuda": cuda.run}
"""Need what not every machine has: a gibibyte for a file, a GPU."""
_LIBRARIES: Final = ("torch", "numpy", "uvicorn", "orjson", "pysimdjson", "safetensors")


def environment() -> dict[str, str | int]:
    """Returns what the figures depend on besides the code."""
    about: dict[str, str | int] = {"machine": _cpu(), "cores": len(os.sched_getaffinity(0))}
    about["python"] = platform.python_version()
    return about | {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Prints every bar beside its reference.")
    known = [*SECTIONS, *ON_DEMAND]
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"of {', '.join(known)}; default: all but client and cuda"
    )
    parser.add_argument("--quick", action="store_true", help="under 2.5 minutes, with more noise")
    parser.add_argument("--markdown", action="store_true", help="tables for a README")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw every bar into FILE, as SVG")
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="saved", help="measure nothing, read what --json wrote"
    )
    options = parser.parse_args()
    unknown = set(options.sections) - set(known)
    if unknown:
        parser.error(f"unknown sections: {', '.join(sorted(unknown))}")
    return options


def _measure(options: argparse.Namespace) -> Results:
    """Runs the sections asked for and prints the tables of each when it is done."""
    begun_at = time.perf_counter()
    sections: dict[str, list[Table]] = {}
    for name in options.sections or SECTIONS:
        sections[name] = {**SECTIONS, **ON_DEMAND}[name](is_quick=options.quick)
        _show(sections[name], is_markdown=options.markdown)
    return Results(environment(), options.quick, time.perf_counter() - begun_at, sections)


def _read(options: argparse.Namespace) -> Results:
    saved = Results.load(options.saved)
    results = saved.of(options.sections) if options.sections else saved
    for tables in results.sections.values():
        _show(tables, is_markdown=options.markdown)
    return results


def _show(tables: Sequence[Table], *, is_markdown: bool) -> None:
    for table in tables:
        print(render(table, markdown=is_markdown), flush=True)


def main() -> None:
    """Measures, or reads, and shows."""
    options = _arguments()
    results = _read(options) if options.saved else _measure(options)
    print(results.about)
    if options.json:
        results.save(options.json)
    if options.plot:
        plot.save(results, options.plot)
    if results.has_wrong_answers:
        sys.exit("some answers were wrong: their figures count for nothing")


if __name__ == "__main__":
    main()
