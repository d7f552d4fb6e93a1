"""The controller: API server, store, reconcilers, agent sessions; and the registry as a process of its own."""
