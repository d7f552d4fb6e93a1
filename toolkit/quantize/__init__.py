"""Weights in fewer bits, and layers that compute with them as the NPU does."""
