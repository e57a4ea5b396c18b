"""Launch configuration of merge_embeddings, one for every width."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MergeLaunch:
    """``block`` elements of a row at a time by ``warps``; ``places`` rows per program when places are looked up."""

    block: int
    warps: int
    places: int
    reason: str


CONFIG = MergeLaunch(
    block=4096, warps=4, places=1024, reason="four 16-byte loads a thread in flight at 3584; not timed"
)
