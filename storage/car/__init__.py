"""CAR: many blocks in one file or stream, versions 1 and 2. Read, checked and written as they pass by."""
