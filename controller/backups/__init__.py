"""Backups of a controller: one file from which a machine can be rebuilt, and the way back from it."""
