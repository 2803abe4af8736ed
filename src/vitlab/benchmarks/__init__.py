"""Speed benchmarks: variants of the same work, measured side by side in one run."""
