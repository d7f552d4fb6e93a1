"""The OpenAI-compatible endpoint of the board."""
