"""Figures put side by side for a decision: verdicts, plots, a report."""
