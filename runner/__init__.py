"""Declarative experiments on diffusion transformers: one recipe, one command, one page. Start at __main__.py."""
