"""What the demo and the tiny curriculum start from when there are no weights."""
