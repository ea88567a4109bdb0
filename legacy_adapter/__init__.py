"""The translation between what clients speak and what a backend speaks. Floor 1.

Without an adapter on a route both backends are spoken to as the client speaks, and bytes are streamed.
"""
