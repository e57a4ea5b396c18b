"""From conversations to packed token ids and audio windows."""
