"""For which of the models here was a folder's adapter trained? Pure: what the folder says, and the models, in."""

from collections.abc import Sequence

import msgspec

from agents.adapters.fits import check_fits
from agents.adapters.inspect import Inspection
from agents.engine.messages import ModelCard
from agents.errors import WrongBase
from storage.catalog.models import ModelRow


def base_of(found: Inspection, models: Sequence[ModelRow], wanted: str | None = None) -> ModelRow:
    """The base model: the one the user names, else the one that the training noted, that PEFT's config names, or the
    only one that the shapes fit.

    Raises: WrongBase when none fits, or when several do and nothing tells which was meant.
    """
    noted = found.training.get("base")
    if wanted is None:
        for row in models:
            if noted in row.accepts:
                return row
        if isinstance(noted, str):
            raise WrongBase(
                f"it was trained on {found.base_name or 'a model'}, which is not here: covey model pull {noted}"
            )
    fitting = [row for row in models if _fits(found, row) and wanted in (None, row.name)]
    named = [row for row in fitting if found.base_name in (row.name, row.source, row.card.get("name"))]
    if len(named or fitting) == 1:
        return (named or fitting)[0]
    if not fitting:
        raise WrongBase(
            f"its layers do not fit {wanted or 'any model here'}. "
            "Bring in the model that it was trained on: covey model pull"
        )
    names = ", ".join(row.name for row in fitting)
    raise WrongBase(f"it fits {names}, and nothing tells which was meant. Say it: --model NAME")


def _fits(found: Inspection, row: ModelRow) -> bool:
    card = msgspec.convert(row.card, ModelCard)
    try:
        check_fits(found.pairs, card)
    except WrongBase:
        return False
    return card.hidden_size > 0
