"""The agent as a service of the system: its unit, and `rkfleet agent install` and `uninstall`."""
