"""The model registry: the OCI distribution API over files, a process of its own."""
