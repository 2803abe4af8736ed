"""Compose, check and resolve a config, and build what it names."""
