"""Speaking: a streaming codec of audio, and the talker that says text in its codes."""
