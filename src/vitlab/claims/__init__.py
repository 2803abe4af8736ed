"""What the project's experiments claim: runs of them on record, beside figures that others published."""
