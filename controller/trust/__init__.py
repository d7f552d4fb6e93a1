"""Certificate authorities, tokens and their files."""
