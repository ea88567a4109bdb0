"""How the legacy backend speaks, and its translation for clients. Floor 1.

Empty until the first adapter: without one, both backends are spoken to as the client speaks.
"""
