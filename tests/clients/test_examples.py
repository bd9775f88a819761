"""The examples in other languages, run by their own toolchains against the live service.

A toolchain that is missing skips its language, unless REQUIRE_TOOLCHAINS is set, as it is in `.ci/run`.
"""

import base64
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.server import Server, find_free_port
from tests.vectors import BY_NAME, EXAMPLES, FILE, PROBES, VECTORS, check

# The first run of a compiler may have to build a standard library.
pytestmark = pytest.mark.timeout(240)

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
PASSED = re.compile(r"^ok \d+ - (\S+)|^ +--- PASS: \w+/(\S+)", re.MULTILINE)
FAILED = re.compile(r"^not ok \d+ - (\S+)|^ +--- FAIL: \w+/(\S+)", re.MULTILINE)
# Debian's gccgo calls its go command go-12.
GO = ("go", *(f"go-{version}" for version in range(20, 9, -1)))


@dataclass(frozen=True, slots=True)
class Program:
    """A command line in a folder of the examples; `tools` are names its first word may have on this machine."""

    folder: str
    tools: tuple[str, ...]
    arguments: str

    def __str__(self) -> str:
        return f"{self.folder}-{self.arguments}"

    def run(self, url: str, *more: str, cache: Path) -> subprocess.CompletedProcess[str]:
        """Run it against a service; `cache` is where it may keep what it compiles."""
        command = [self.find_tool(), *self.arguments.format(cache=cache).split(), *more]
        here = {"LOSSEVAL_URL": url, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        go = {"GOCACHE": str(cache / "go"), "GOPROXY": "off", "GOTOOLCHAIN": "local"}
        return subprocess.run(
            command,
            capture_output=True,
            check=False,
            cwd=EXAMPLES / self.folder,
            env={**os.environ, **here, **go},
            text=True,
            timeout=200,
        )

    def find_tool(self) -> str:
        """Path of the first tool there is."""
        found = next(filter(None, map(shutil.which, self.tools)), None)
        if found is None:
            reason = f"{self.tools[0]} is not installed"
            (pytest.fail if os.environ.get("REQUIRE_TOOLCHAINS") else pytest.skip)(reason)
        return found


JSON = [
    Program("curl", ("sh",), "cross_entropy.sh"),
    Program("node", ("node",), "cross_entropy.mjs"),
    Program("java", ("java",), "CrossEntropy.java"),
    Program("go", GO, "run ./crossentropy"),
    Program("r", ("Rscript",), "cross_entropy.R"),
]
BINARY = [
    Program("node", ("node",), "binary.mjs"),
    Program("java", ("java",), "Binary.java"),
    Program("go", GO, "run ./safetensors"),
]
RUNNERS = [
    Program("node", ("node",), "conformance.mjs"),
    Program("java", ("java",), "-cp {cache}/java Conformance"),
    Program("go", GO, "test -v -count=1 ./crossentropy -args"),
    Program("r", ("Rscript",), "conformance.R"),
]
COMPILE_JAVA = Program("java", ("javac",), "-Xlint:all -Werror -d {cache}/java")


@pytest.fixture
def cache(pytestconfig: pytest.Config) -> Path:
    """A folder that outlasts the run, so that nothing is compiled twice."""
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("examples")


def numbers(text: str) -> list[float]:
    return [float(number) for number in NUMBER.findall(text)]


@pytest.mark.parametrize("program", [*JSON, *BINARY], ids=str)
def test_example_prints_the_loss_of_the_readme(program: Program, server: Server, cache: Path) -> None:
    finished = program.run(server.url, cache=cache)
    assert finished.returncode == 0, finished.stderr
    assert numbers(finished.stdout)[0] == pytest.approx(BY_NAME["readme"]["response"]["loss"], rel=1e-6)
    assert finished.stdout.startswith("1.2130")
    if program in BINARY:
        expected = [number for row in BY_NAME["gradients"]["response"]["gradients"] for number in row]
        assert numbers(finished.stdout)[1:] == pytest.approx(expected, rel=1e-5)
    else:
        assert len(finished.stdout.splitlines()) == 1


@pytest.mark.parametrize("program", [*JSON, *BINARY], ids=str)
def test_problem_is_told_and_fails(program: Program, server: Server, cache: Path) -> None:
    finished = program.run(f"{server.url}/elsewhere", cache=cache)
    assert finished.returncode != 0
    assert finished.stdout == ""
    assert "There is nothing at this path" in finished.stderr
    assert "There is nothing at '/elsewhere/v1/cross-entropy'" in finished.stderr


@pytest.mark.parametrize("program", [*JSON, *BINARY], ids=str)
def test_no_answer_is_told_and_fails(program: Program, cache: Path) -> None:
    finished = program.run(f"http://127.0.0.1:{find_free_port()}", cache=cache)
    assert finished.returncode != 0
    assert finished.stdout == ""
    assert re.search("connect|connection", finished.stderr, re.IGNORECASE)


def run_vectors(program: Program, server: Server, vectors: Path, cache: Path) -> tuple[int, set[str], set[str]]:
    """Exit code of a conformance runner, and the vectors that passed and that failed."""
    program.find_tool()
    if program.folder == "java":
        compiled = COMPILE_JAVA.run(server.url, *map(str, (EXAMPLES / "java").glob("*.java")), cache=cache)
        assert compiled.returncode == 0, compiled.stderr
    finished = program.run(server.url, str(vectors), cache=cache)
    passed, failed = ({"".join(names) for names in found.findall(finished.stdout)} for found in (PASSED, FAILED))
    assert passed or failed, finished.stderr or finished.stdout
    return finished.returncode, passed - failed, failed


@pytest.mark.parametrize("program", RUNNERS, ids=lambda program: program.folder)
def test_every_vector_agrees(program: Program, server: Server, cache: Path) -> None:
    exit_code, passed, failed = run_vectors(program, server, FILE, cache)
    assert failed == set()
    assert passed == set(BY_NAME)
    assert exit_code == 0


@pytest.mark.parametrize("program", RUNNERS, ids=lambda program: program.folder)
def test_runner_notices_wrong_answers(program: Program, server: Server, cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "probes.json"
    file.write_text(json.dumps({"vectors": PROBES}), encoding="utf-8")
    exit_code, passed, failed = run_vectors(program, server, file, cache)
    assert failed == {vector["name"] for vector in PROBES if vector["name"].startswith("wrong")}
    assert passed == {vector["name"] for vector in PROBES} - failed
    assert exit_code != 0


def post_file(server: Server, cache: Path, file: Path, content: bytes, *options: str) -> tuple[int, object]:
    """What the shell script prints for a file."""
    file.write_bytes(content)
    finished = JSON[0].run(server.url, str(file), *options, cache=cache)
    answer = json.loads(finished.stdout)
    assert (finished.returncode == 0) == ("status" not in answer)
    assert finished.returncode == 0 or answer["title"] in finished.stderr
    return answer.get("status", 200), answer


def test_curl_posts_json_files(server: Server, cache: Path, tmp_path: Path, subtests: pytest.Subtests) -> None:
    for vector in VECTORS:
        with subtests.test(vector["name"]):
            content = json.dumps(vector["request"]).encode()
            check(vector, *post_file(server, cache, tmp_path / "batch.json", content))


def test_curl_posts_safetensors_files(server: Server, cache: Path, tmp_path: Path, subtests: pytest.Subtests) -> None:
    for vector in VECTORS:
        if "safetensors" in vector:
            with subtests.test(vector["name"]):
                content, query = base64.b64decode(vector["safetensors"]["body"]), vector["safetensors"]["query"]
                check(vector, *post_file(server, cache, tmp_path / "batch.safetensors", content, query))
