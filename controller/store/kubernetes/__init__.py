"""The store over the API of a Kubernetes cluster."""
