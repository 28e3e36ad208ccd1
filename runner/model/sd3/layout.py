"""The layout of Stable Diffusion 3: that of any transformer of diffusers tells all of it."""

from ..diffusers.layout import layout

__all__ = ["layout"]
