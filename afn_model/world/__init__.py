"""A world to learn from: conversations about synthesised scenes with exact truth, along the ten data axes."""
