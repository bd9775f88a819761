"""`python -m examples.pipeline [--output FOLDER]`: `make demo`. A model gets worse on purpose, and somebody is woken.

Three minutes at most. The exit code is 0 only if the alert was received, and not before there was a reason.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from losseval import Client

from examples.pipeline import dashboard, picture, stack
from examples.pipeline.stack import Alert, Stack, StackError
from examples.pipeline.traffic import MODEL, ROOT, VERSION, Pipeline

SPEED: Final = 60
TURN_S: Final = 5
SAMPLES: Final = 1000
HEALTHY_TURNS: Final = 6
ROLLOUT: Final = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.0, 1.0)
"""Share of the mobile photos that come from the new version of the app, turn by turn."""
MORE_TURNS: Final = 8
"""To wait for an alert, and for its end."""
AWAITED: Final = {"LossevalDrift", "LossevalLossAboveBaseline"}
_FIGURES: Final = {
    "loss": ("losseval:nll_mean:window", "{:.3f}"),
    "accuracy": ("losseval:accuracy:window", "{:.1%}"),
    "drift": ("losseval:drift:z", "{:+.1f}σ"),
}


class Story:
    """What happens, and what is said about it."""

    def __init__(self, running: Stack, pipeline: Pipeline, client: Client) -> None:
        self._running, self._pipeline, self._client = running, pipeline, client
        self._started = self._next = time.time()
        self._told = 0
        self.fault_at = self.repaired_at = self._started

    def tell(self) -> bool:
        """Returns whether the alerts came, when they should."""
        say(f"\nHealthy: {HEALTHY_TURNS} turns of {SAMPLES} answers; their labels come one turn later.")
        for _ in range(HEALTHY_TURNS):
            self._turn(0)
        false_alarms = self._fired()
        say("\nFault: a new version of the mobile app crops its photos one pixel too far to the left.")
        self.fault_at = time.time()
        for faulty in ROLLOUT:
            self._turn(faulty)
        for _ in range(MORE_TURNS):
            if self._fired() >= AWAITED:
                break
            self._turn(ROLLOUT[-1])
        fired = self._fired()
        say("\nRepaired: the app is rolled back.")
        self.repaired_at = time.time()
        for _ in range(MORE_TURNS):
            if not self._firing():
                break
            self._turn(0)
        say("")
        return self._judged(false_alarms, fired)

    def timeline(self) -> picture.Timeline:
        """Returns when what happened."""
        return picture.Timeline(self._started, self.fault_at, self.repaired_at, time.time())

    def _judged(self, false_alarms: set[str], fired: set[str]) -> bool:
        if false_alarms:
            say(f"False alarm while the model was healthy: {', '.join(sorted(false_alarms))}.")
        elif fired >= AWAITED:
            say("Healthy, degraded, alert received" + (", repaired, all clear." if not self._firing() else "."))
        else:
            say(f"Not received: {', '.join(sorted(AWAITED - fired))}.")
        return not false_alarms and fired >= AWAITED

    def _turn(self, faulty: float) -> None:
        """Lets the pipeline take a turn, waits for the next one, and tells what is known then."""
        self._pipeline.turn(self._client, faulty=faulty)
        self._next += TURN_S
        while (left := self._next - time.time()) > 0:
            self._running.receiver.wait(self._has_news, left)
            self._tell_alerts()
        selector = f'{{model="{MODEL}",version="{VERSION}"}}'
        values = {name: self._running.prometheus.value(series + selector) for name, (series, _) in _FIGURES.items()}
        texts = [f"{name} {_FIGURES[name][1].format(one):>7}" for name, one in values.items() if one is not None]
        note = f"{faulty:4.0%} of the mobile photos wrong" if faulty else ""
        say(f"{self._now():4.0f} s  {'  '.join(texts) or 'no labels yet':44}  {note}".rstrip())

    def _has_news(self, alerts: list[Alert]) -> bool:
        return len(alerts) > self._told

    def _tell_alerts(self) -> None:
        alerts = self._running.receiver.alerts
        while self._told < len(alerts):
            one = alerts[self._told]
            state = "ALERT" if one.status == "firing" else "resolved"
            say(f"{self._now():4.0f} s  >>> {state}: {one.name}: {one.annotations['summary']}")
            self._told += 1

    def _now(self) -> float:
        return time.time() - self._started

    def _fired(self) -> set[str]:
        return {one.name for one in self._running.receiver.alerts if one.status == "firing"}

    def _firing(self) -> set[str]:
        """Returns what was received and not taken back."""
        last: dict[str, Alert] = {one.name: one for one in self._running.receiver.alerts}
        return {name for name, one in last.items() if one.status == "firing"}


def say(text: str) -> None:
    """Prints at once, in a pipe, too."""
    print(text, flush=True)


def run(output: Path) -> bool:
    """Starts everything, tells the story, draws the pictures, ends everything; returns whether it went as it should.

    Raises:
        StackError: Something is missing or did not start.
    """
    stack.Tools.found()  # before anything slow
    with tempfile.TemporaryDirectory(prefix="losseval-demo-") as name:
        folder, models_file = Path(name), Path(name, "models.yaml")
        say("Training the model, measuring its baseline …")
        pipeline = Pipeline(samples=SAMPLES)
        models_file.write_text(pipeline.declaration(folder, label_interval=f"{TURN_S}s"), encoding="utf-8")
        say(f"{models_file.read_text(encoding='utf-8')}\nStarting the service, Prometheus and Alertmanager …")
        with stack.running(folder, models_file, speed=SPEED) as running, Client(running.services[0]) as client:
            say(f"{running.services[0]}/metrics   {running.prometheus.url}/alerts   {running.alertmanager_url}")
            say(f"The rules are deploy/prometheus/rules, {SPEED} times faster: 15 minutes take {900 // SPEED} seconds.")
            story = Story(running, pipeline, client)
            went_well = story.tell()
            output.mkdir(parents=True, exist_ok=True)
            for draw, file in ((picture.draw, "pipeline.svg"), (dashboard.draw, "dashboards.svg")):
                picture.save(draw(running, story.timeline(), SPEED), output / file)
                say(f"Picture: {output / file}")
    return went_well


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the demonstration."""
    parser = argparse.ArgumentParser("python -m examples.pipeline", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "demo", help="folder of the pictures (default: demo)")
    options = parser.parse_args(arguments)
    # Everything runs here, whatever proxy the environment names.
    os.environ |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    # A termination unwinds like any other end, and takes the children along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(0 if run(options.output) else 1)
    except StackError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
