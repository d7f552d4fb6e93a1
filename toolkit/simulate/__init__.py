"""A language model in numpy: what the board will compute, without the board."""
