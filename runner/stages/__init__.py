"""One file a stage. Each has `run(context, draft)`: read `context.artifacts`, write results into the folder `draft`."""
