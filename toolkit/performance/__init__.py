"""What speed and memory to expect of a model on a chip, from the vendor's table."""
