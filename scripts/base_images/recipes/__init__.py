"""Reads and compares Dockerfiles, upstream's, ours and the consumer's; moves the pin."""
