"""The pipeline: the model answers, labels come later, and then both go to the service."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import yaml
from losseval import Client

from examples.pipeline import digits

ROOT = Path(__file__).resolve().parents[2]
MODEL, VERSION = "digits", "1"
SHARES = {"web": 0.6, "mobile": 0.4}
"""Segments of the traffic, and how much of it each is."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the model said to some callers, and what would have been right."""

    segment: str
    predicted_at: datetime
    logits: digits.Array
    labels: digits.Labels


class Pipeline:
    """Answers, and posts each answer when its label is there: one turn later."""

    def __init__(self, *, samples: int, seed: int = 0) -> None:
        """Trains the model.

        Args:
            samples: Answers of one turn, over all segments.
            seed: Of the split and of the traffic.
        """
        training, self._unseen = digits.load(seed)
        self._model = digits.Model(training)
        self._samples = samples
        self._random = np.random.default_rng(seed)
        self._unlabelled: deque[Answers] = deque()

    def declaration(self, folder: Path, *, label_interval: str) -> str:
        """Returns a MODELS_FILE; its baseline comes from digits that the model has not seen.

        Args:
            folder: Where logits and labels are left for `python -m service baseline`.
            label_interval: Time between two turns, e.g. `5s`.
        """
        file = folder / "reference.json"
        logits = self._model.logits(self._unseen)
        file.write_text(json.dumps({"logits": logits.tolist(), "labels": self._unseen.labels.tolist()}))
        command = [sys.executable, "-m", "service", "baseline", str(file), "--model", MODEL, "--version", VERSION]
        command += ["--label-interval", label_interval]
        printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        declared = yaml.safe_load(printed)
        declared["models"][0]["segments"] = list(SHARES)
        return str(yaml.safe_dump(declared, sort_keys=False))

    def turn(self, client: Client, *, faulty: float = 0.0) -> None:
        """Posts the answers of the turn before, whose labels have come, and answers this turn's requests.

        Args:
            client: Of the service.
            faulty: Share of the mobile photos that the app crops wrongly. The model stays the same.
        """
        while self._unlabelled:
            _post(client, self._unlabelled.popleft())
        for segment, share in SHARES.items():
            asked = self._unseen.drawn(round(share * self._samples), self._random)
            seen = asked.partly_shifted(faulty) if segment == "mobile" else asked
            logits = self._model.logits(seen)
            self._unlabelled.append(Answers(segment, datetime.now(UTC), logits, asked.labels))


def _post(client: Client, answers: Answers) -> None:
    client.cross_entropy(
        answers.logits,
        answers.labels,
        include=["loss"],
        model=MODEL,
        version=VERSION,
        segment=answers.segment,
        predicted_at=answers.predicted_at,
    )
