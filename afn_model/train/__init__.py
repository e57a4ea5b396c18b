"""Training in stages: a curriculum, supervised fine-tuning and GRPO, checkpoints and the log."""
