"""The new service: the same public API as the monolith under examples/legacy, told in today's words.

`routes.py` is the best place to start reading: the one table that serves, guards and documents.
"""
