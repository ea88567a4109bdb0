"""The legacy monolith: Flask on waitress, hand-written SQL, and a schema with a past.

`schema.sql` is the best place to start reading: its habits are what a migration has to survive.
"""
