"""The store seam and its implementations."""
