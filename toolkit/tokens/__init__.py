"""Text to token ids and back, and the templates that make a prompt of a conversation."""
