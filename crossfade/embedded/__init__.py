"""Real servers from PyPI wheels (extra `embedded`), run by our own small life-cycle code."""
