"""From a plan to a run folder and a worker on it: one job, or a sweep of them."""
