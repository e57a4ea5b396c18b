"""From items to answers: what is asked, in which run, and what answers it."""
