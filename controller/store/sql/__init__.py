"""The store over SQL: SQLAlchemy Core, one writer thread, reads from memory."""
