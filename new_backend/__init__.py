"""The sample product after its migration."""
