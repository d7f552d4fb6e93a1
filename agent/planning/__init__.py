"""Deciding on the board: what is assigned and what is seen become steps and conditions. Pure."""
