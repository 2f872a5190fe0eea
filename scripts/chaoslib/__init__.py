"""Faults of real processes and links while clients ask, and what came of every request."""
