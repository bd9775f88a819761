"""Reports what has grown: long functions, long modules, the whole service. Judged by eye, so it never fails."""

import ast
from pathlib import Path

FUNCTION_LINES = 25
MODULE_LINES = 300
SERVICE_LINES = 3_000


def prose_lines(tree: ast.AST) -> set[int]:
    """Returns the lines of docstrings, those of attributes included."""
    strings = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return {line for node in strings for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


total = code = 0
for module in sorted(Path("service").rglob("*.py")):
    source = module.read_text(encoding="utf-8")
    tree = ast.parse(source)
    lines, prose = source.splitlines(), prose_lines(tree)
    total += len(lines)
    code += sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in prose
        for number, line in enumerate(lines, 1)
    )
    if len(lines) > MODULE_LINES:
        print(f"{module}: {len(lines)} lines (more than {MODULE_LINES})")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                print(f"{module}:{node.lineno}: {node.name} has {length} lines (more than {FUNCTION_LINES})")
print(f"service/ has {total} lines, {code} of them code, of at most {SERVICE_LINES}")
