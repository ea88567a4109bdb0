"""The sample product before its migration."""
