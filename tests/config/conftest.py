"""These tests compose as the desk does."""

from desk.conftest import checked, own_folder  # noqa: F401  fixtures
