"""Mirroring and comparing against real servers, from the request to the report."""
