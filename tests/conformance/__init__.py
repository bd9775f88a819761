"""Tests of the numbers: against textbook mathematics, PyTorch and the accuracy bars."""
