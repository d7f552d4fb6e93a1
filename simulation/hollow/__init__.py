"""Hollow boards: the real session protocol without disk or HTTP, by the thousand, for scale tests of the control plane."""
