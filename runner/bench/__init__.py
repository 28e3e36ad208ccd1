"""What a stage is given: the loaded model, the device, artifacts, and where it reports."""
