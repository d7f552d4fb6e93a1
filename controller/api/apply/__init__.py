"""Who owns which field, and server-side apply: pure functions from objects to objects."""
