"""The documents: their examples print what they show, and whatever a user can set or meet is in them.

Blocks marked `sh` that call `curl` or `losseval`, and blocks marked `python`, are run in the order in which they
stand. A block directly followed by one marked `text` or `json` must print that.
"""

import difflib
import io
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import get_args

import httpx
import pytest

from service.api.problems import PROBLEMS
from service.api.schemas import CrossEntropyRequest, EvaluationWarning
from service.loss.options import OUTPUTS
from service.settings import PREFIX, Settings
from tests.server import ROOT, Server

README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "clients/python/README.md"]
FOLDERS = [path for path in ROOT.iterdir() if path.is_dir() and (path.name == ".github" or path.name[0] != ".")]
MARKDOWN = sorted({README, *ROOT.glob("*.md"), *(found for folder in FOLDERS for found in folder.rglob("*.md"))})

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
FENCE_LINE = re.compile(r"^[ \t>]*(```|~~~)", re.MULTILINE)
ADDRESS = re.compile(r"(localhost|127\.0\.0\.1):8000")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w)")
COMMAND = re.compile(r"^(curl|losseval) ", re.MULTILINE)
MAKE_LINE = re.compile(r"^make ([a-z]\w*)", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)|^\[[^\]]+\]:\s*(\S+)|\b(?:href|src)=\"([^\"]+)\"", re.MULTILINE)
# Differ from call to call, or from machine to machine.
VARYING_FIELDS = {"request_id", "instance", "torch", "python", "max_inflight_bytes"}
VARYING_HEADERS = re.compile(r"^(date|server-timing|x-request-id):.*$", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block, the line its text starts on, and the block directly after it."""

    language: str
    text: str
    line: int
    output: "Block | None" = None

    @property
    def is_run(self) -> bool:
        return self.language == "python" or (self.language == "sh" and bool(COMMAND.search(self.text)))


def read(document: Path) -> str:
    assert document.exists(), f"{document.relative_to(ROOT)} is missing"
    return document.read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    """Fenced blocks in order; one directly followed by `text` or `json` has that as its output."""
    found: list[Block] = []
    next_start = 0
    for match in reversed(list(FENCE.finditer(text))):
        has_output = found and found[-1].language in {"text", "json"} and not text[match.end() : next_start].strip()
        line = text.count("\n", 0, match.start(2))
        found.append(Block(match[1], match[2], line, found[-1] if has_output else None))
        next_start = match.start()
    return found[::-1]


def run_shell(block: Block, server: Server, folder: Path) -> str:
    """Run a block against the server and return what it printed."""
    assert not MAKE_LINE.search(block.text), "make is not run by this test: give it a block of its own"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    finished = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", at_server(block.text, server)],
        capture_output=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PATH": path},
        text=True,
        timeout=30,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def run_python(block: Block, server: Server, namespace: dict[str, object], document: Path) -> str:
    """Execute a block and return what it printed; tracebacks name the document's own lines."""
    source = "\n" * block.line + at_server(block.text, server)
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(source, document, "exec"), namespace)
    return printed.getvalue()


def at_server(text: str, server: Server) -> str:
    return ADDRESS.sub(f"127.0.0.1:{server.port}", text)


def check_output(printed: str, output: Block, server: Server) -> None:
    promised = at_server(output.text, server)
    if output.language == "json":
        found, expected = (json.loads(text, parse_float=Decimal) for text in (printed, promised))
        assert is_alike(found, expected), f"printed {printed}\nshown {promised}"
        return
    printed, promised = (normalized(text) for text in (printed, promised))
    is_same_text = NUMBER.sub("#", printed) == NUMBER.sub("#", promised)
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(promised), strict=False)
    if not is_same_text or not all(is_close(Decimal(one), Decimal(other)) for one, other in pairs):
        pytest.fail("\n".join(difflib.ndiff(promised.splitlines(), printed.splitlines())))


def normalized(text: str) -> str:
    """Text without what varies and without alignment."""
    lines = VARYING_HEADERS.sub(r"\1", text).strip().splitlines()
    return "\n".join(" ".join(line.split()) for line in lines)


def is_alike(printed: object, promised: object) -> bool:
    """Equal JSON, up to rounding and to what varies."""
    if isinstance(printed, dict) and isinstance(promised, dict):
        return printed.keys() == promised.keys() and all(
            name in VARYING_FIELDS or is_alike(printed[name], promised[name]) for name in promised
        )
    if isinstance(printed, list) and isinstance(promised, list):
        return len(printed) == len(promised) and all(map(is_alike, printed, promised))
    if isinstance(printed, Decimal) and isinstance(promised, Decimal):
        return is_close(printed, promised)
    return type(printed) is type(promised) and printed == promised


def is_close(printed: Decimal, promised: Decimal) -> bool:
    """Within 1e-4 relative, or in the last place of a number rounded to three digits or more; integers are exact."""
    step = Decimal(1).scaleb(int(promised.as_tuple().exponent))
    if step >= 1:
        return printed == promised
    return abs(printed - promised) <= max(abs(promised) * Decimal("1e-4"), step if step <= Decimal("1e-3") else 0)


def lacking(names: Iterable[str], *documents: Path) -> list[str]:
    """Names that stand in none of the documents, whole words only."""
    text = "\n".join(read(document) for document in documents)
    return [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)]


def slug(heading: str) -> str:
    """Anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)}


def links(text: str) -> list[str]:
    """Targets of the links outside code."""
    prose = re.sub(r"`[^`\n]*`", "`", FENCE.sub("", text))
    return ["".join(groups) for groups in LINK.findall(prose)]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_examples_print_what_the_document_shows(
    document: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subtests: pytest.Subtests
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOSSEVAL_URL", server.url)  # where the client looks
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(read(document)):
        if block.is_run:
            with subtests.test(f"line {block.line}"):
                if block.language == "python":
                    printed = run_python(block, server, namespace, document)
                else:
                    printed = run_shell(block, server, tmp_path)
                if block.output is None:
                    assert '"/problems/' not in printed, printed
                else:
                    check_output(printed, block.output, server)
    for value in namespace.values():
        if isinstance(value, httpx.Client):
            value.close()


@pytest.mark.parametrize(
    ("language", "printed", "promised", "holds"),
    [
        pytest.param("text", "loss  1.21300278\n", "loss 1.2130", True, id="shortened-and-aligned"),
        pytest.param("text", "loss 1.2133", "loss 1.2130", False, id="wrong-digit"),
        pytest.param("text", "count 10001", "count 10000", False, id="integers-are-exact"),
        pytest.param("text", "loss -0.0000", "loss  0.0000", True, id="sign-of-zero"),
        pytest.param("text", "1.5\n2.5", "1.5", False, id="a-line-more"),
        pytest.param("text", "x-request-id: a\nok", "x-request-id: b\nok", True, id="request-id"),
        pytest.param("json", '{"a":[1,2.00001],"b":true}', '{"b": true, "a": [1, 2.0]}', True, id="structure"),
        pytest.param("json", '{"a":1,"b":2}', '{"a":1}', False, id="a-field-more"),
        pytest.param("json", "[1,2]", "[1,3]", False, id="wrong-integer"),
        pytest.param("json", '{"request_id":"x"}', '{"request_id":"y"}', True, id="request-id-field"),
    ],
)
def test_outputs_are_compared_up_to_rounding(
    language: str, printed: str, promised: str, holds: bool, server: Server
) -> None:
    with nullcontext() if holds else pytest.raises((AssertionError, pytest.fail.Exception)):
        check_output(printed, Block(language, promised, 1), server)


@pytest.mark.parametrize(
    ("document", "language", "least"),
    [
        pytest.param("README.md", "sh", 1, id="readme"),
        pytest.param("docs/loss.md", "sh", 3, id="loss-sh"),
        pytest.param("docs/loss.md", "python", 8, id="loss-python"),
    ],
)
def test_documents_have_examples_with_their_output(document: str, language: str, least: int) -> None:
    found = [block for block in blocks(read(ROOT / document)) if block.is_run and block.language == language]
    assert sum(block.output is not None for block in found) >= least


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_no_block_escapes_execution(document: Path) -> None:
    """Only blocks at the margin, fenced by backticks and named `sh` or `python`, are found and run."""
    text = read(document)
    found = blocks(text)
    assert len(FENCE_LINE.findall(text)) == 2 * len(found)
    assert not {block.language for block in found} & {"", "bash", "shell", "zsh", "console", "py", "python3"}


def make_targets(text: str) -> set[str]:
    """Targets named in shell blocks and in inline code."""
    in_blocks = [target for block in blocks(text) if block.language == "sh" for target in MAKE_LINE.findall(block.text)]
    return {*in_blocks, *re.findall(r"`make ([a-z]\w*)", FENCE.sub("", text))}


@pytest.mark.parametrize("document", MARKDOWN, ids=name_of)
def test_every_make_target_named_exists(document: Path) -> None:
    assert make_targets(read(document)) <= set(re.findall(r"^([a-z]\w*):", read(ROOT / "Makefile"), re.MULTILINE))


def test_readme_names_the_first_make_targets() -> None:
    assert {"serve", "test"} <= make_targets(read(README))


def test_every_setting_is_documented() -> None:
    names = list(Settings.model_fields)
    assert "port" in names
    assert not lacking((f"--{name.replace('_', '-')}" for name in names), README)
    assert not lacking((PREFIX + name.upper() for name in names), README)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_no_setting_is_documented_that_does_not_exist(document: Path) -> None:
    """But the client's two, and Kubernetes' own LOSSEVAL_SERVICE_… variables, may be mentioned."""
    found = set(re.findall(rf"\b{PREFIX}(?!SERVICE_)([A-Z][A-Z_]*[A-Z])\b", read(document)))
    assert {name.lower() for name in found} <= {*Settings.model_fields, "url", "api_key"}


def test_every_metric_is_documented(client: httpx.Client) -> None:
    """In full, or without the prefix where a table says so; creation times come with each counter and histogram."""
    exposed = re.findall(r"^# TYPE losseval_(\w+) ", client.get("/metrics").text, re.MULTILINE)
    names = [name for name in exposed if not name.endswith("_created")]
    assert "build_info" in names
    assert not lacking(
        [f"losseval_{name}" for name in lacking((f"`{name}`" for name in names), *DOCUMENTS)], *DOCUMENTS
    )


def test_every_problem_code_is_documented() -> None:
    assert not lacking((f"`{kind.code}`" for kind in PROBLEMS), *DOCUMENTS)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(tuple(CrossEntropyRequest.model_fields), id="request-fields"),
        pytest.param(OUTPUTS, id="outputs"),
        pytest.param(get_args(EvaluationWarning.model_fields["code"].annotation), id="warnings"),
    ],
)
def test_every_name_of_the_operation_is_documented(names: tuple[str, ...]) -> None:
    assert names
    assert not lacking((f"`{name}`" for name in names), *DOCUMENTS)


@pytest.mark.parametrize("document", MARKDOWN, ids=name_of)
def test_relative_links_resolve(document: Path) -> None:
    text = read(document)
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(read(target)), link


def test_picture_is_what_its_script_draws() -> None:
    draw = runpy.run_path(str(ROOT / "docs" / "plots.py"))["draw"]
    assert read(ROOT / "docs" / "loss.svg") == draw()


def test_table_of_metrics_is_what_the_service_has() -> None:
    document = runpy.run_path(str(ROOT / "docs" / "metrics.py"))
    assert read(ROOT / "docs" / "monitoring.md") == document["written"](read(ROOT / "docs" / "monitoring.md"))
