"""Write the digests of what every rule gives: `python -m tests.vectors.make_aggregation`, from the repository's root.

With `--print` they go to standard output instead. They hold on every machine, with any kernels.
"""

import json
import sys
from pathlib import Path

from tests.agents.aggregation.adapters import lora_digest
from tests.agents.aggregation.examples import N_PARAMS, RECIPES, digest, examples
from tests.agents.federation.bits import digests as rounds


def main() -> None:
    """Write the file, or print it."""
    digests = {name: digest(examples(N_PARAMS), recipe) for name, recipe in RECIPES.items()}
    text = json.dumps(digests | {"flexlora": lora_digest()} | rounds(), indent=1) + "\n"
    if "--print" in sys.argv:
        sys.stdout.write(text)
    else:
        (Path(__file__).parent / "aggregation.json").write_text(text)


if __name__ == "__main__":
    main()
