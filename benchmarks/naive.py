"""The reference: cross-entropy over HTTP as one would first write it.

FastAPI, pydantic models of nested lists in and out, torch's autograd for the gradients; a plain
`def` endpoint, which is what FastAPI's documentation advises for code that blocks. It does less
than the service (no options, no limits, no problem documents) and ignores fields it doesn't know,
so it is sent the very bytes that the service is sent.
"""

import torch
from fastapi import FastAPI
from pydantic import BaseModel
from torch.nn import functional

app = FastAPI()


class Question(BaseModel):
    """Logits of shape (N, C) and class indices of shape (N)."""

    logits: list[list[float]]
    labels: list[int]


class Answer(BaseModel):
    """The mean, what it is the mean of, and its gradient with respect to the logits."""

    loss: float
    losses: list[float]
    gradients: list[list[float]]


@app.post("/cross-entropy")
def cross_entropy(question: Question) -> Answer:
    """Computes the losses and lets autograd find the gradients."""
    logits = torch.tensor(question.logits, requires_grad=True)
    labels = torch.tensor(question.labels)
    losses = functional.cross_entropy(logits, labels, reduction="none")
    loss = losses.mean()
    (gradients,) = torch.autograd.grad(loss, logits)
    return Answer(loss=loss.item(), losses=losses.tolist(), gradients=gradients.tolist())
