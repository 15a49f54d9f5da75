"""Knowledge from the user's files: which files, their text, chunks with line numbers, and a vector index on disk.

usearch and numpy are imported when something is searched, never when this package is.
"""
