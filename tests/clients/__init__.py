"""Clients against the live service."""
