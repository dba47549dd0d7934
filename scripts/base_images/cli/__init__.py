"""The command line: one module of tasks per room, and how results are shown."""
