"""Curation: from recordings on the internet to training data, stage by stage, with nothing counted twice or lost."""
