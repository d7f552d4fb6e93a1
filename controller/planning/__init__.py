"""Pure decisions over frozen values: no time, no randomness, no I/O."""
