"""What people read: the report of a run, what there is of the benchmarks' files, and files to hand in."""
