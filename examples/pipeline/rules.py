"""The repository's own rules, faster: what they wait for and look back on is divided, and nothing else.

An alert over fifteen minutes can't be shown in two. Expressions, thresholds and names stay as they are; of the label
intervals, which models declare in seconds, all of a demonstration are in the shortest class.
"""

import re
from pathlib import Path

from examples.pipeline.traffic import ROOT

RULES = ROOT / "deploy" / "prometheus" / "rules"
_MILLISECONDS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
# A range in an expression; how long an alert must hold; how often a group is evaluated; when Alertmanager writes again.
_DURATION = re.compile(
    r"(?P<before>\[|\b(?:for|interval|group_wait|group_interval|repeat_interval): )(?P<count>\d+)(?P<unit>[smhdw])\b"
)


def quickened(text: str, speed: int) -> str:
    """Returns rules, Alertmanager's configuration or an expression, durations divided by `speed` to milliseconds."""

    def divided(match: re.Match[str]) -> str:
        milliseconds = int(match["count"]) * _MILLISECONDS[match["unit"]] // speed
        return f"{match['before']}{milliseconds}ms"

    return _DURATION.sub(divided, text)


def write(folder: Path, speed: int) -> None:
    """Writes all rule files into a folder."""
    for file in sorted(RULES.glob("*.yml")):
        (folder / file.name).write_text(quickened(file.read_text(encoding="utf-8"), speed), encoding="utf-8")
