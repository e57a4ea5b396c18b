"""Recordings: decoding, resampling, windows, and how many frames and tokens they give."""
