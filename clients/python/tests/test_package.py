"""The package as others get it: what it needs, how fast it is imported, and how it looks to a type checker."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tomllib

PACKAGE = Path(__file__).parent.parent
CACHE = PACKAGE.parent.parent / ".mypy_cache" / "consumer"
IMPORT_MS = 150


def run_python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def test_it_depends_on_httpx_and_numpy_alone() -> None:
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.split("[^a-z]", requirement)[0] for requirement in project["dependencies"]]
    print("dependencies:", names)
    assert names == ["httpx", "numpy"]


def test_it_is_imported_quickly() -> None:
    code = """
        import time
        start = time.process_time()
        from losseval import Client
        print((time.process_time() - start) * 1e3)
    """
    run_python(code)  # writes the byte code
    fastest = min(float(run_python(code)) for _ in range(5))
    numpy = min(float(run_python(code.replace("from losseval import Client", "import numpy"))) for _ in range(5))
    print(f"import: {fastest:.0f} ms of CPU, of which numpy {numpy:.0f} ms")
    assert fastest < max(IMPORT_MS, 2 * numpy)  # on a busy machine numpy alone takes longer


def test_nothing_is_imported_that_is_not_needed() -> None:
    code = """
        import sys, losseval
        print(sorted({"torch", "pydantic", "pandas", "httpx", "asyncio", "ml_dtypes"} & set(sys.modules)))
        losseval.AsyncClient
        losseval.Client()._open()
        print(sorted({"torch", "pydantic", "pandas", "ml_dtypes"} & set(sys.modules)))
    """
    assert run_python(code).splitlines() == ["[]", "[]"]


def test_the_namespace_is_what_is_documented() -> None:
    import losseval  # noqa: PLC0415

    assert sorted(losseval.__all__) == losseval.__all__
    for name in losseval.__all__:
        assert getattr(losseval, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        losseval.nothing  # noqa: B018


CONSUMER = """
    import numpy as np
    import numpy.typing as npt
    from losseval import APIStatusError, AsyncClient, Client, Comparison, CrossEntropyResult, compare, errors


    def evaluate(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
        with Client("http://localhost:8000", timeout=5) as client:
            result: CrossEntropyResult = client.cross_entropy(
                logits, labels, include=["loss", "losses", "gradients"], reduction="mean", ids=["a", "b"]
            )
            whole = client.evaluate_arrays(logits, labels, chunk_bytes=1 << 20, progress=lambda told: print(told.mean))
            for part in client.evaluate_many([(logits, labels)], max_in_flight=2, include=["nll"]):
                print(part.nll.mean(), part.meta.timings["compute"])
            difference: Comparison = compare(result, whole)
            print(difference.interval[0], result.top(3)["nll"], client.info()["version"], client.ready())
            return result.loss + float(result.losses.sum()) + float(result.gradients.sum())


    async def evaluate_later(logits: list[list[float]]) -> float:
        async with AsyncClient() as client:
            try:
                return (await client.cross_entropy(logits, [0, 1])).loss
            except errors.LimitExceededError as error:
                return float(error.problem["limit"])
            except APIStatusError as error:
                raise RuntimeError(error.code, error.status_code, error.request_id) from error
"""


MISSPELT = [
    ('reduction="mean"', 'reduction="men"', "reduction"),
    ('"gradients"]', '"gradient"]', "gradient"),
    ("max_in_flight=2", "max_in_fligth=2", "max_in_fligth"),
    ("return result.loss", "return result.warnings", "No overload variant"),
]


@pytest.mark.timeout(180)
def test_a_consumer_is_checked_strictly_and_what_is_misspelt_is_seen(tmp_path: Path) -> None:
    good = textwrap.dedent(CONSUMER)
    (tmp_path / "good.py").write_text(good, encoding="utf-8")
    for number, (right, wrong, _) in enumerate(MISSPELT):
        (tmp_path / f"bad{number}.py").write_text(good.replace(right, wrong, 1), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(CACHE)]
    environment = {**os.environ, "MYPYPATH": str(PACKAGE)}
    checked = subprocess.run(
        [*command, *sorted(map(str, tmp_path.glob("*.py")))],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    complaints = [line for line in checked.stdout.splitlines() if "error:" in line]
    assert not [line for line in complaints if "good.py" in line], checked.stdout
    for number, (_, _, complaint) in enumerate(MISSPELT):
        assert [line for line in complaints if f"bad{number}.py" in line and complaint in line], checked.stdout
