"""One call of a pipeline, and where it stands, what it takes, what comes out."""
