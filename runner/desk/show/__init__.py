"""What the desk says on the terminal."""
