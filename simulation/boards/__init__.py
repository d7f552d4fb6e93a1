"""Simulated boards: many shipped agents in one process, each with its own directory, certificate, ledger and HTTP ports."""
