"""Generation: tokens drawn from a network, with a context that shifts, inputs of four kinds, and prompts kept in files."""
