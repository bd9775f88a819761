"""A model whose labels come late and that gets worse on purpose, and everything that watches it."""
