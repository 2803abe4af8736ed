"""Understand arguments as a person means them: paths, names, words of other tools."""
