"""Mirroring and comparison of answers. Floor 2. Empty: the first capability that needs it fills it."""
