"""`python -m benchmarks [SECTION …] [--quick] [--markdown] [--json FILE]`: what `make bench` runs."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from benchmarks import http, kernel, start
from benchmarks.report import Table, render

SECTIONS: Final[Mapping[str, Callable[..., list[Table]]]] = {
    "kernel": kernel.run,
    "http": http.run,
    "start": start.run,
}
_LIBRARIES: Final = ("torch", "numpy", "uvicorn", "orjson", "pysimdjson")


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
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="under 90 seconds, with more noise")
    parser.add_argument("--markdown", action="store_true", help="tables for a README")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown sections: {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    """Runs the sections asked for and prints their tables."""
    options = _arguments()
    begun_at = time.perf_counter()
    tables: list[Table] = []
    for name in options.sections or SECTIONS:
        found = SECTIONS[name](is_quick=options.quick)
        tables += found
        for table in found:
            print(render(table, markdown=options.markdown), flush=True)
    about = environment()
    print(f"{', '.join(f'{name} {value}' for name, value in about.items())}; {time.perf_counter() - begun_at:.0f} s")
    if options.json:
        result = {"environment": about, "quick": options.quick, "tables": [dataclasses.asdict(one) for one in tables]}
        options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if any(line.get("wrong answers") for table in tables for line in table.rows):
        sys.exit("some answers were wrong: their figures count for nothing")


if __name__ == "__main__":
    main()
