"""Which block is reused at which step, and how. What the desk reads of this room (policy) imports no torch."""
