"""Compare runs: ranking, statistics, table, page."""
