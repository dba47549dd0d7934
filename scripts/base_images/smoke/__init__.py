"""Whether llama-server computes right: starts it, asks for the known answer, and reports."""
