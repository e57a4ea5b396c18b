"""Training: supervised fine-tuning in stages."""
