"""What a run may say, and how it is said: keys, types, meanings, values by precedence, faults. No torch."""
