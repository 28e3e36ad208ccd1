"""How the weights that ship were made, and how they are measured."""
