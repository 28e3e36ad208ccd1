"""The desk decides what runs; it imports no torch, so an answer takes about a second."""
