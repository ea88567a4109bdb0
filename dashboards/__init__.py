"""Web console pages, Grafana boards and alert rules. Reads through the API functions of `crossfade`."""
