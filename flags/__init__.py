"""Who gets what: routes, the compiled snapshot, and the one decision a request gets. Floor 1."""
