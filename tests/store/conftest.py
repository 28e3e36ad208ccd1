"""These tests compose as the desk does."""

from desk.conftest import own_folder  # noqa: F401  fixtures
