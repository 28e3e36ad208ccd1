"""What a run will do: its stages and their keys, what is reused and why, what it takes."""
