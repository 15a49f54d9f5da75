"""Updates in fewer bytes: codecs (one a file in `codecs/`), each with its memory of what it left out.

What a codec gives is what is submitted and what its CID covers. Everyone decodes the same bytes to the same numbers.
"""
