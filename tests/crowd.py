"""Requests that reach the server together, so that it puts them into one batch."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any, Self

import numpy as np
import torch

from tests.calls import JSON, PATH
from tests.wire import encode

CONNECTIONS = 12
BATCH_KEY = ("weight", "label_smoothing", "temperature", "z_loss", "include", "precision", "gradient_dtype", "encoding")
EVERY_OUTPUT = [
    "loss",
    "losses",
    "gradients",
    "nll",
    "probabilities",
    "logsumexp",
    "entropy",
    "margin",
    "gradient_norm",
    "predictions",
]


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer to one request of a crowd."""

    status: int
    content: bytes
    timing: str

    @property
    def companions(self) -> int:
        """Return how many requests shared the batch, itself included."""
        found = re.search(r'batch;desc="requests=(\d+) rows=\d+"', self.timing)
        assert found, self.timing
        return int(found[1])


class Crowd:
    """A set of open connections on which requests are sent back to back before any answer is read."""

    def __init__(self, port: int) -> None:
        self._connections = [HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(CONNECTIONS)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()

    def fire(self, bodies: Sequence[bytes], headers: Sequence[Mapping[str, str]] = ()) -> list[Reply]:
        """Send all bodies at once, behind one that keeps the device busy, and read the answers.

        They are JSON, unless each has headers of its own.
        """
        used = list(zip(self._connections, [BUSY, *bodies], strict=False))
        for (connection, body), given in zip(used, [JSON, *(headers or [JSON] * len(bodies))], strict=True):
            connection.request("POST", PATH, body, given)
        replies = []
        for connection, _ in used:
            response = connection.getresponse()
            replies.append(Reply(response.status, response.read(), response.getheader("server-timing", "")))
        return replies[1:]


def busy_body() -> bytes:
    """Request of a few milliseconds on the device that shares a batch with nobody."""
    logits = np.random.default_rng(0).normal(size=(96, 997)).astype(np.float32)
    fields = {"precision": "high", "include": EVERY_OUTPUT, "encoding": "base64", "gradient_dtype": "F16"}
    return encode({"logits": logits, "labels": np.zeros(96, np.int8), **fields}, arrays="base64")


BUSY = busy_body()


def random_rows(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Logits of which every fourth set holds something that is not finite."""
    logits = 4 * torch.randn(shape, generator=generator)
    kind = int(torch.randint(4, (), generator=generator))
    if kind == 0:
        poison = [torch.nan, torch.inf, -torch.inf][int(torch.randint(3, (), generator=generator))]
        logits[0] = torch.where(torch.rand(shape[1:], generator=generator) < 0.5, poison, logits[0])
    return logits.to(dtype)


def stranger(fields: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
    """Request with other rows and per-row options that can share a batch with `fields`."""
    logits = torch.as_tensor(fields["logits"])
    axis = 0 if logits.ndim == 1 else fields.get("class_axis", 1)
    classes = logits.shape[axis]
    rows = int(torch.randint(1, 6, (), generator=generator))
    labels = torch.randint(classes, (rows,), generator=generator)
    if torch.as_tensor(fields["labels"]).ndim == logits.ndim:
        labels = torch.randn((rows, classes), generator=generator).softmax(1).to(logits.dtype)
    reduction = ["mean", "sum", "none"][int(torch.randint(3, (), generator=generator))]
    return {
        "logits": random_rows((rows, classes), logits.dtype, generator),
        "labels": labels,
        "reduction": reduction,
        "sample_weight": torch.rand(rows, generator=generator),
        "grad_output": torch.randn((), generator=generator).item(),
        **{name: fields[name] for name in BATCH_KEY if name in fields},
    }


def strangers(fields: Mapping[str, Any], count: int, generator: torch.Generator) -> list[bytes]:
    """Bodies of several strangers."""
    return [encode(stranger(fields, generator), arrays="base64") for _ in range(count)]
