"""What an answer is worth: metrics of evaluation, rewards of reinforcement, a judge."""
