"""Groups of a grid: members stand in one, and in each round those that differ in one coordinate alone average.

When the grid is full and nobody drops out, all hold the exact mean after as many rounds as there are dimensions.
Source: Ryabinin et al. (arXiv 2103.03239), algorithm 1.
"""


def side(n_members: int, n_dimensions: int) -> int:
    """The smallest side of a grid in which all have a place."""
    length = 1
    while length**n_dimensions < n_members:
        length += 1
    return length


def groups(n_members: int, n_dimensions: int, dimension: int) -> list[tuple[int, ...]]:
    """Who averages with whom along a dimension, by place; all, each once."""
    length = side(n_members, n_dimensions)
    stride = length**dimension
    found: dict[int, list[int]] = {}
    for member in range(n_members):
        found.setdefault(member - member // stride % length * stride, []).append(member)
    return [tuple(group) for _, group in sorted(found.items())]
