"""The synthetic world: conversations about synthesised recordings with exact truth.

Its records follow the ten data axes of the curriculum, and three basic tasks (word, sound, onset) that ``afn demo``
learns: ``build.make`` makes one record, ``build.write_world`` a corpus.
"""
