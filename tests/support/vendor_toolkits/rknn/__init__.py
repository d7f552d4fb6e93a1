"""A stand-in for the vendor's package, run in an interpreter of its own."""
