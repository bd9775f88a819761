"""losseval: cross-entropy, per-sample losses and gradients over HTTP."""

__version__ = "0.1.0"
