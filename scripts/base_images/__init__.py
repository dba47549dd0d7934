"""Versions, builds, checks and smoke-tests the llama.cpp base images."""
