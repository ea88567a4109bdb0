"""Words that every room shares. Floor 0: imports nothing of ours and does no I/O."""
