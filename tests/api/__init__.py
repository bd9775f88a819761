"""Tests of the HTTP contract against a running server."""
