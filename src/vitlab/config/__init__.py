"""From YAML and the command line to a checked config and to objects. Importing it imports no torch."""
