"""The row's way: capture, mapping, apply, backfill, verify. Floor 2."""
