"""Bytes of models on the board: fetched, verified, kept, evicted."""
