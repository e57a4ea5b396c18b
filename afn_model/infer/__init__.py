"""Inference: turning a batch of prompts into tokens."""
