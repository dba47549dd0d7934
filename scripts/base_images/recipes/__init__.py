"""The Dockerfiles, upstream's and the consumer's: reads them, compares them, moves the pin."""
