"""The package as a wheel, on the lowest, the pinned and the newest versions of what it needs.

``python -m tests.versions`` makes the environments and writes the results; ``smoke.py`` is what runs in each.
"""
