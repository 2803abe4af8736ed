"""What happens around many runs: launching them, and the answer that they give together."""
