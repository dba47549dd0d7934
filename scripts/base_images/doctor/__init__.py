"""What this machine, its engine and its devices are ready for."""
