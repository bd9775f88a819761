"""What the source of the service must not contain."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.server import ROOT

SOURCES = sorted((ROOT / "service").rglob("*.py"))
# Each runs what it reads, or reads more than it is told.
FORBIDDEN = {
    *(
        "pickle",
        "cPickle",
        "dill",
        "cloudpickle",
        "joblib",
        "marshal",
        "shelve",
        "yaml.load",
        "yaml.full_load",
        "yaml.unsafe_load",
        "yaml.load_all",
    ),
    *("eval", "exec", "compile", "__import__"),
    *("torch.load", "torch.hub", "torch.jit", "np.load", "numpy.load", "np.lib", "numpy.lib", "np.fromfile"),
    *("subprocess", "os.system", "os.popen"),
}


def names(tree: ast.AST) -> Iterator[str]:
    """Yields every name that is imported, called or looked up, dotted ones whole and in their beginnings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def offences(source: str) -> set[str]:
    tree = ast.parse(source)
    found = {name for name in names(tree) if name in FORBIDDEN or name.split(".")[0] in FORBIDDEN}
    found |= {"sparse" for name in names(tree) if "sparse" in name.split(".")}
    return found | {"assert" for node in ast.walk(tree) if isinstance(node, ast.Assert)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_it_reads_and_nothing_is_validated_by_assert(path: Path) -> None:
    assert not offences(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "from torch import load",
        "import torch\ntorch.load(body)",
        "import numpy as np\nnp.load(body)",
        "eval(text)",
        "import yaml\nyaml.load(text)",
        "torch.sparse.mm(a, b)",
        "assert size < limit",
    ],
)
def test_an_offence_is_found(source: str) -> None:
    assert offences(source)


FLOORS = {"starlette": "1.6", "uvicorn": "0.54", "h11": "0.16", "httptools": "0.8", "orjson": "3.11.6", "torch": "2.11"}


def test_dependencies_stay_above_their_last_known_holes_and_come_without_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {one.name: one for one in map(Requirement, project["dependencies"])}
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line
    )
    for name, floor in FLOORS.items():
        (specifier,) = required[name].specifier
        assert specifier.operator == ">="
        assert Requirement(f"{name}>={floor}").specifier.contains(specifier.version), name
        assert required[name].specifier.contains(pinned[name]), name
    assert not [name for name, one in required.items() if one.extras]
