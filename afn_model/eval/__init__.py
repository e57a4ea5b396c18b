"""Evaluation: answers to questions with known truth."""
