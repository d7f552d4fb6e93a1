"""The controller's end of the board sessions."""
