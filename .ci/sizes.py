"""Reports what has grown: long functions, long modules, the whole service. Judged by eye, so it never fails."""

import ast
from pathlib import Path

FUNCTION_LINES = 25
MODULE_LINES = 300
SERVICE_LINES = 3_000

total = 0
for module in sorted(Path("service").rglob("*.py")):
    source = module.read_text(encoding="utf-8")
    lines = len(source.splitlines())
    total += lines
    if lines > MODULE_LINES:
        print(f"{module}: {lines} lines (more than {MODULE_LINES})")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                print(f"{module}:{node.lineno}: {node.name} has {length} lines (more than {FUNCTION_LINES})")
print(f"service/ has {total} lines of at most {SERVICE_LINES}")
