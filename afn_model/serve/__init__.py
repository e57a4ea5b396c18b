"""An HTTP server that speaks OpenAI's API about recordings, and its page. Needs the extra ``serve``."""
