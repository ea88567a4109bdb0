"""Wiring, command line and admin API. Floor 3, and the only package that users import."""
