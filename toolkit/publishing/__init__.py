"""A finished model file and what belongs to it, as a variant of a Model."""
