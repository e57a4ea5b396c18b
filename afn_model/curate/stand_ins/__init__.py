"""What stands in for models that are too large for a test: it listens on a CPU, with weights out of wheels."""
