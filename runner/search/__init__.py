"""What any search under a budget is made of."""
