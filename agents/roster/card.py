"""An agent's card: who it is, in the fields of an A2A AgentCard (v1.0), signed by its host and known by its CID.

The card is the content of an entry of kind `agent` in the scope `agents`; its author is the host. It says what the
agent can do and by what model, never with what token or at which address that is reached.
"""

from collections.abc import Mapping
from typing import Any, Final

from agents.roster.declaration import BadAgent, Declaration
from protocols.entry import Entry, make_entry
from protocols.errors import Malformed
from storage.cid import Cid
from storage.keys import Identity, PeerId

KIND: Final = "agent"
SCOPE: Final = "agents"
MAX_CARD_BYTES: Final = 32 << 10
BINDING: Final = "https://covey.invalid/bindings/workspace"
VERSION: Final = "1.0"
TEXT: Final = "text/plain"


def card_of(declared: Declaration, host: PeerId, workspace: Cid) -> dict[str, Any]:
    """The card as JSON has it, in the names of the A2A specification."""
    skills = [
        {"id": word, "name": word, "description": declared.description or word, "tags": [declared.role]}
        for word in declared.capabilities or (declared.role,)
    ]
    return {
        "name": declared.name,
        "description": declared.description or f"An agent with the role {declared.role}",
        "version": declared.version,
        "provider": {"organization": str(host), "url": f"covey:{host}"},
        "supportedInterfaces": [
            {"url": f"covey:{host}/{workspace}/{declared.name}", "protocolBinding": BINDING, "protocolVersion": VERSION}
        ],
        "capabilities": {"streaming": False, "pushNotifications": False, "extendedAgentCard": False},
        "defaultInputModes": [TEXT],
        "defaultOutputModes": [TEXT],
        "skills": skills,
    }


def sign_card(identity: Identity, declared: Declaration, workspace: Cid, sequence: int) -> Entry:
    """The card, signed. Beside A2A's fields it tells the role, the tools, and the model."""
    model = {"kind": declared.model.kind, "name": declared.model.name, "adapter": declared.model.adapter}
    content = {
        "card": card_of(declared, identity.peer_id, workspace),
        "role": declared.role,
        "model": model,
        "tools": list(declared.tools),
        "workspace": str(workspace),
    }
    return make_entry(identity, KIND, SCOPE, sequence, [], content)


def read_card(entry: Entry) -> Mapping[str, Any]:
    """The content of an entry that is a card. Raises: Malformed."""
    content = entry.content
    if (entry.kind, entry.scope) != (KIND, SCOPE) or content.keys() != {"card", "role", "model", "tools", "workspace"}:
        raise Malformed(f"{entry.cid} is no agent's card")
    card = content["card"]
    if len(entry.body_block) > MAX_CARD_BYTES or not isinstance(card, dict) or not isinstance(card.get("name"), str):
        raise Malformed(f"{entry.cid} is no agent's card")
    return content


def check_size(entry: Entry) -> None:
    """Raises: BadAgent for a card that others would refuse."""
    if len(entry.body_block) > MAX_CARD_BYTES:
        raise BadAgent(f"the card has {len(entry.body_block)} bytes; {MAX_CARD_BYTES} are allowed: say it shorter")
