"""The row's way: capture, mapping, apply, verify, cutover. Floor 2. Empty until it is built."""
