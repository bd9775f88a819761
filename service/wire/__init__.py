"""Bytes to arrays and back; pure, and sizes are checked before anything is allocated."""
