"""What talks to the world outside: the container engine, BuildKit, registries, git, programs and downloads."""
