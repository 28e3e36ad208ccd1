"""What is on disk and who is at work on it: artifacts, locks, hashes, status. Imports no torch."""
