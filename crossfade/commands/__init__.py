"""The commands that talk to the admin API. Imported only when one of them is run."""
