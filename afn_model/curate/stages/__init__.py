"""The stages of curation, one file for each or for two that belong together."""
