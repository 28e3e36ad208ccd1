"""From what Hydra composed to one configuration that may run, or every reason why it may not."""
