"""What dump remembers of the float model, and what later stages read of it."""
