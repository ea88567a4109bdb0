"""The request's way: the wire, the upstream pools and the worker. Floor 2."""
