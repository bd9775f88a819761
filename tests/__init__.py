"""Tests of the service, written against its contract."""
