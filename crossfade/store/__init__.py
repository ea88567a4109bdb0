"""The store: Crossfade's own state in PostgreSQL, and the one path through which it changes."""
