"""How right an answer is: metrics of evaluation, rewards of reinforcement, and the definitions that both share."""
