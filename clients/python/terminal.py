"""Draws terminal.svg: `losseval evaluate` on the digits of scikit-learn, logits out of sample, in a real terminal.

`.venv/bin/python clients/python/terminal.py`; no server is needed.
"""

import io
import os
import pty
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.text import Text
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.model_selection import cross_val_predict  # type: ignore[import-untyped]

COLUMNS, ROWS = 92, 60
COMMAND = "losseval evaluate digits.npz --local --top-k 3 --plot --out losses.parquet"
PICTURE = Path(__file__).with_name("terminal.svg")


def captured(command: list[str]) -> str:
    """Runs a command in a pseudo-terminal and returns what it wrote."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
        os.execv(command[0], command)  # noqa: S606 - this very Python
    written = b""
    while True:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # Linux' way to say that the child is done
            break
        written += piece
    os.waitpid(child, 0)
    return written.decode()


def main() -> None:
    """Makes the data, runs the command, draws what it wrote."""
    features, labels = load_digits(return_X_y=True)
    model = LogisticRegression(max_iter=1000)
    logits = cross_val_predict(model, features / 16, labels, method="decision_function")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        np.savez("digits.npz", logits=logits.astype(np.float32), labels=labels)
        written = captured([sys.executable, "-m", *COMMAND.split()])
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    # Of a line that is drawn again and again, the last state.
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in written.split("\n")]
    console.print(Text.from_ansi("\n".join([f"$ {COMMAND}", *lines]).rstrip()))
    drawing = console.export_svg(title="losseval", unique_id="losseval")
    # Without the fonts that rich would have the reader's browser fetch.
    PICTURE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawing, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
