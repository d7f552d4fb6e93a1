"""The board's end of the session."""
