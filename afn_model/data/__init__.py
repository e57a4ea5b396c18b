"""Training data: records, their index, the order they come in, packing into bins, and the loader."""
