"""The little world: captioned clips, a judge without learning, and the small checkpoint trained on them."""
