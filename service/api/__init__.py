"""The HTTP skin: parse, call the evaluator, serialise."""
