"""The HTTPS API in the Kubernetes wire format."""
