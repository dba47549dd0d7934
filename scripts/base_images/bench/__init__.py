"""Compares upstream's own server image with ours: what building costs, what users pull, and how both run."""
