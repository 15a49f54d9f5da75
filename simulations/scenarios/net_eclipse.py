"""Eclipse and sybils: an attacker with many identities around one node, in its mesh and in its routing table.

The attacker has few networks (/24) and as many keys as it likes. All of its identities dial the victim, as far as that
lets them in, and ask to be in its mesh. The silent kind passes nothing on; the loud kind sends messages that nobody
accepts. A tenth of the honest nodes is slow: nothing reaches them, or comes from them, within a second. In the routing
table, which is py-libp2p's, the attacker has the keys closest to the victim's that it could find.
"""

import argparse
import hashlib
from functools import partial
from typing import Any, Final, NamedTuple

import trio

from agents.training.curves import Curve
from protocols.gossipsub import wire
from protocols.net import PeerInfo, TopicMessage
from protocols.strangers import MAX_OF_SUBNET_IN_TABLE, reason_against
from protocols.sweep import key_of, shared_bits
from simulations.crowd import outcome
from simulations.gossip import TOPIC, Gossipers
from simulations.pictures import Chart, add_common, draw
from simulations.tables import add, new_table
from simulations.world import make_identity
from storage.keys import PeerId

SUMMARY: Final = "eclipse and sybils: their share of a victim's mesh and table, and what it still hears"
N_DIALS: Final = 6
ATTACK_S: Final = 30.0
END_S: Final = 150.0
GAP_S: Final = 2.0
LOUD_GAP_S: Final = 0.5
BAD: Final = b"bad"
VICTIM: Final = 0
N_GROUND: Final = 40  # keys that the attacker tries for each identity in the table: it keeps the closest
SUBNET: Final = "198.18.{}.0/24"
SLOW_S: Final = 1.0  # one way, of the links of slow nodes
SLOW_EVERY: Final = 10
MOST_OF_MESH: Final = 0.25
MOST_OF_TABLE: Final = 0.5


class Share(NamedTuple):
    """The attacker's, of a routing table and of the 20 in it that are closest to the victim."""

    of_table: float
    of_closest: float


class Attacked(NamedTuple):
    """What came of one attack. `shares` are of the victim's mesh, second by second."""

    n_let_in: int
    n_blamed: int  # honest nodes that an honest one took for silent
    n_slow_blamed: int  # of these, slow ones
    shares: list[tuple[float, float]]
    heard_frac: float
    worst_s: float

    def share(self, from_s: float) -> float:
        """The mean share of the mesh from some time on."""
        some = [share for at_s, share in self.shares if at_s >= from_s]
        return sum(some) / max(1, len(some))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The scenario's options."""
    add_common(parser, "net_eclipse", 200)
    parser.add_argument("--sybils", type=int, default=500, help="identities of the attacker (default 500)")
    parser.add_argument("--subnets", type=int, default=4, help="networks that it has (default 4)")


def run(args: argparse.Namespace) -> str:
    """Simulate; expected: the victim hears everything, its mesh and its table stay mostly honest."""
    quiet = attack(args.nodes, args.sybils, args.subnets, args.seed, is_loud=False)
    loud = attack(args.nodes, args.sybils, args.subnets, args.seed, is_loud=True)
    ours, bucket, unlimited = trio.run(table_share, args.nodes, args.sybils, args.subnets, args.seed)
    rows = {
        "honest nodes": args.nodes,
        "identities, networks": f"{args.sybils}, {args.subnets}",
        "let in": quiet.n_let_in,
        "of the mesh, silent": f"{quiet.share(ATTACK_S + 60):.1%}",
        "heard beside silent": f"{quiet.heard_frac:.1%}, worst after {quiet.worst_s:.2f} s",
        "honest taken for silent": f"{quiet.n_blamed} times, slow ones {quiet.n_slow_blamed} times",
        "of the mesh, loud": f"{loud.share(ATTACK_S + 60):.1%}",
        "heard beside loud": f"{loud.heard_frac:.1%}, worst after {loud.worst_s:.2f} s",
        "of the table": f"{ours.of_table:.1%}",
        "of its 20 closest": f"{ours.of_closest:.1%}",
        " by bucket alone": f"{bucket.of_table:.1%}, {bucket.of_closest:.1%}",
        " without any limit": f"{unlimited.of_table:.1%}, {unlimited.of_closest:.1%}",
    }
    heard_all = quiet.heard_frac == loud.heard_frac == 1.0
    kept = max(quiet.share(ATTACK_S + 60), loud.share(ATTACK_S + 60))
    is_met = heard_all and kept < MOST_OF_MESH and max(ours) <= MOST_OF_TABLE
    curves = [
        Curve(name, [(at_s, 100 * share) for at_s, share in one.shares])
        for name, one in (("silent", quiet), ("loud", loud))
    ]
    chart = Chart("Share of the victim's mesh", curves, "s", "percent")
    return draw(args.png, outcome("net_eclipse", rows, is_met), [chart])


def let_in(n_sybils: int, n_subnets: int) -> list[int]:
    """Which identities get a connection, in the order in which they come."""
    inside: list[str] = []
    found = []
    for number in range(n_sybils):
        subnet = SUBNET.format(number % max(1, n_subnets))
        if not reason_against([*inside, subnet], subnet):
            inside.append(subnet)
            found.append(number)
    return found


def attack(n_nodes: int, n_sybils: int, n_subnets: int, seed: int, *, is_loud: bool) -> Attacked:
    """The victim is node 0; the attacker's identities are the last ones."""
    inside = let_in(n_sybils, n_subnets)
    flock = Gossipers(n_nodes + len(inside), seed)
    flock.bears = lambda node, message: _bears(n_nodes, node, message)
    flock.connect_at_random(N_DIALS, range(n_nodes))
    slow = set(range(SLOW_EVERY // 2, n_nodes, SLOW_EVERY))
    flock.links = {ends: SLOW_S if slow.intersection(ends) else latency_s for ends, latency_s in flock.links.items()}
    flock.run(ATTACK_S)
    sybils = range(n_nodes, n_nodes + len(inside))
    flock.mute.update(sybils)
    for sybil in sybils:
        flock.link(sybil, VICTIM)
        flock.say(sybil, VICTIM, wire.frame_graft(TOPIC))
        if is_loud:
            _be_loud(flock, sybil)
    for number in range(int((END_S - ATTACK_S - 10) / GAP_S)):
        flock.at(
            ATTACK_S + GAP_S * number, partial(flock.publish, flock.chance.randrange(1, n_nodes), b"said %d" % number)
        )
    shares = []
    while flock.time_s < END_S:
        flock.run(flock.time_s + 1.0)
        mesh = flock.mesh(VICTIM)
        shares.append((flock.time_s, sum(node in sybils for node in mesh) / max(1, len(mesh))))
    blamed = [flock.numbers[peer] for node in range(n_nodes) for peer in flock.routers[node].silent(TOPIC)]
    honest = [node for node in blamed if node < n_nodes]
    heard = {one.data: one.at_s - flock.said_s[one.data] for one in flock.heard if one.node == VICTIM}
    n_slow = sum(node in slow for node in honest)
    return Attacked(
        len(inside), len(honest), n_slow, shares, len(heard) / len(flock.said_s), max(heard.values(), default=0.0)
    )


def _bears(n_nodes: int, node: int, message: TopicMessage) -> bool:
    """The honest refuse what is bad."""
    return node >= n_nodes or not message.data.startswith(BAD)


def _be_loud(flock: Gossipers, sybil: int) -> None:
    number = 0

    def speak() -> None:
        nonlocal number
        number += 1
        said = wire.sign(flock.identities[sybil], TOPIC, number, BAD + b"%d %d" % (sybil, number))
        flock.say(sybil, VICTIM, wire.frame_message(said.raw))
        if flock.time_s < END_S:
            flock.at(flock.time_s + LOUD_GAP_S, speak)

    speak()


async def table_share(n_nodes: int, n_sybils: int, n_subnets: int, seed: int) -> list[Share]:
    """The attacker's share of the victim's routing table, and of the 20 in it that are closest to the victim.

    Returns: as our nodes have it, with py-libp2p's own limit for a subnet, which is of one bucket, and with none.
    """
    me = make_identity(seed, "gossip-0").peer_id
    honest = [make_identity(seed, f"gossip-{number}").peer_id for number in range(1, n_nodes)]
    ground = (_closest(me, seed, number) for number in range(n_sybils))
    infos = [PeerInfo(peer, (f"/ip4/52.{10 + at // 250}.{at % 250}.7/tcp/4701",)) for at, peer in enumerate(honest)]
    bad = [PeerInfo(peer, (f"/ip4/44.7.{at % max(1, n_subnets)}.{1 + at // max(1, n_subnets) % 250}/tcp/4701",))
           for at, peer in enumerate(ground)]  # fmt: skip
    found = []
    for limits in ((None, MAX_OF_SUBNET_IN_TABLE), (None, 0), (0, 0)):
        table = await _filled(me, [info for pair in _mixed(infos, bad) for info in pair], *limits)
        peers = {bytes(peer.to_bytes()) for peer in table.get_peer_ids()}
        near = [bytes(peer.to_bytes()) for peer in table.find_local_closest_peers(bytes(me), 20)]
        sybils = {bytes(info.peer) for info in bad}
        found.append(Share(len(peers & sybils) / len(peers), len(sybils.intersection(near)) / len(near)))
    return found


def _mixed(infos: list[PeerInfo], bad: list[PeerInfo]) -> list[list[PeerInfo]]:
    """The attacker comes first, and three for each honest one, until it has nobody left."""
    return [[*bad[3 * at : 3 * at + 3], *infos[at : at + 1]] for at in range(max(len(infos), len(bad) // 3 + 1))]


def _closest(me: PeerId, seed: int, number: int) -> PeerId:
    """An identity whose key lies as close to the victim's as can be found with some work."""
    mine = key_of(me)
    tries = (PeerId.of(hashlib.sha256(f"sybil {seed} {number} {at}".encode()).digest()) for at in range(N_GROUND))
    return max(tries, key=lambda peer: shared_bits(key_of(peer), mine))


async def _filled(me: PeerId, infos: list[PeerInfo], per_subnet: int | None, in_table: int) -> Any:
    """A routing table of py-libp2p's to which these came one after the other."""
    table = new_table(me, per_subnet, in_table)
    for info in infos:
        await add(table, info)
    return table
