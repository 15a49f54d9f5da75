"""Write privacy.json: what Google's dp-accounting 0.6.0 says of uses of Gaussian noise.

    python -m tests.vectors.make_privacy, from the repository's root

It is installed in an environment of its own. Each case is a list of (multiplier, rate, times), and a delta. Epsilons
are by Renyi's orders, all of them and whole ones alone, and by distributions of privacy loss. Its series for orders
between whole ones gives too much where the rate is high; whole orders have no such series.
"""

import json
import subprocess
from pathlib import Path

from tests.interop.strangers import environment

CASES = (
    ([(1.0, 1.0, 1)], 1e-5),
    ([(4.0, 1.0, 30)], 1e-5),
    ([(0.6, 1.0, 1)], 1e-5),
    ([(10.0, 1.0, 1)], 1e-5),
    ([(100.0, 1.0, 1)], 0.1),
    ([(1.1, 0.01, 1000)], 1e-5),
    ([(0.8, 0.001, 2000)], 1e-7),
    ([(1.0, 0.1, 100)], 1e-6),
    ([(2.0, 0.5, 50)], 1e-5),
    ([(1.5, 0.02, 500), (3.0, 1.0, 5)], 1e-5),
)
ORACLE = """
import json, sys
import dp_accounting as dp
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

def event(multiplier, rate, times):
    noise = dp.GaussianDpEvent(multiplier)
    return dp.SelfComposedDpEvent(noise if rate == 1.0 else dp.PoissonSampledDpEvent(rate, noise), times)

found = []
for uses, delta in json.load(sys.stdin):
    whole = [*range(2, 64), 128, 256, 512, 1024]
    accountants = RdpAccountant(), RdpAccountant(whole), PLDAccountant()
    for accountant in accountants:
        accountant.compose(dp.ComposedDpEvent([event(*use) for use in uses]))
    found.append([accountant.get_epsilon(delta) for accountant in accountants])
json.dump(found, sys.stdout)
"""


def main() -> None:
    """Ask, and write the file."""
    python = environment("accounting", ["dp-accounting==0.6.0"])
    done = subprocess.run(
        [python, "-c", ORACLE], input=json.dumps(CASES), stdout=subprocess.PIPE, text=True, check=True
    )
    rows = [
        {"uses": uses, "delta": delta, "rdp": rdp, "rdp_whole_orders": whole, "pld": pld}
        for (uses, delta), (rdp, whole, pld) in zip(CASES, json.loads(done.stdout), strict=True)
    ]
    (Path(__file__).parent / "privacy.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
