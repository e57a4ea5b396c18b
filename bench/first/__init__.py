"""Ten minutes of one GPU: what is right, then how fast it is, by one command that nothing stops.

    make gpu-first OUT=runs/first          # on a machine with a GPU: no network, nothing installed
    make gpu-first REHEARSE=1              # the same on a CPU, at toy shapes, and every kernel compiled for sm_90a
    python -m bench.first --plan           # what runs when, for how long at most, and what it answers

Each step of the plan is a process with a time limit; each result is a line of first.jsonl at once, and first.md and
its pictures are made of the lines.
"""
