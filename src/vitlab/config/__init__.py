"""From YAML and the command line to a checked config and to objects. Nothing here imports torch."""
