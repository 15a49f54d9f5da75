"""Generation for many requests at once: who computes when (`scheduler`, pure), with what (`batch`), and the parts."""
