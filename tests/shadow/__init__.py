"""Comparing, and what leaves the process."""
