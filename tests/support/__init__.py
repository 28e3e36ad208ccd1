"""What several tests are made with. No test imports another test."""
