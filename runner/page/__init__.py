"""What a page is made of: a run as it is read, its figures and rows, plots. No torch."""
