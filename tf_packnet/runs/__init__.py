"""One run: its configuration, Algorithm 1, its stages and its output."""
