import torch


def merge_embeddings(tokens: torch.Tensor, audio: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return tokens.index_copy(0, rows, audio)
