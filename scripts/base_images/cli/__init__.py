"""The front doors: how results are shown, and commands that join several rooms."""
