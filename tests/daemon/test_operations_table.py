"""The table of operations: what it refuses, and what holds for every entry."""

import inspect
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.api.document import TARGET, document, type_text
from daemon.api.faults import EXITS, STATUSES, Fault, fault_of
from daemon.api.operation import Done, Nothing, Operation, operations, table_of
from daemon.cli.generate import beginning, command_of
from daemon.errors import BadRequest


async def act(_node: Any, _params: Nothing) -> Done:
    return Done(text="done")


def make(noun: str = "thing", verb: str = "act", **more: Any) -> Operation:
    fields: dict[str, Any] = {"summary": "Do it.", "params": Nothing, "result": Done, "handler": act, **more}
    return Operation(noun=noun, verb=verb, **fields)


def module(*made: Operation) -> Any:
    return SimpleNamespace(OPERATIONS=made, __name__="somewhere")


def test_two_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"thing/act \(the second in somewhere\)"):
        table_of([module(make()), module(make(command=("other",)))])


def test_two_of_one_command_are_refused():
    with pytest.raises(ValueError, match="both want the command go"):
        table_of([module(make(command=("go",)), make(verb="again", command=("go",)))])


@pytest.mark.parametrize("wrong", [{"noun": "Thing"}, {"verb": "../x"}, {"summary": ""}, {"arguments": ("nope",)}])
def test_what_is_not_well_formed_is_refused(wrong):
    with pytest.raises(ValueError, match=r".+"):
        make(**wrong)


@pytest.mark.parametrize("operation", operations().values(), ids=lambda operation: operation.name)
class TestEveryOperation:
    def test_is_documented(self, operation):
        assert operation.summary.endswith(".")
        assert inspect.getdoc(operation.handler)
        assert f"### POST /v1/{operation.name}\n" in document()

    def test_has_parameters_that_decode(self, operation):
        decoder = msgspec.json.Decoder(operation.params)
        with pytest.raises(msgspec.ValidationError, match="unknown field"):
            decoder.decode(b'{"surely_no_parameter": 1}')

    @settings(max_examples=20)
    @given(data=st.data())
    def test_takes_every_parameter_that_its_schema_allows(self, operation, data):
        schema = msgspec.json.schema(operation.params)
        sent = msgspec.json.encode(data.draw(values_of(schema, schema["$defs"])))
        params = msgspec.json.Decoder(operation.params).decode(sent)
        assert msgspec.json.Decoder(operation.params).decode(msgspec.json.encode(params)) == params

    def test_has_results_that_decode(self, operation):
        if operation.result is not bytes:
            msgspec.json.Decoder(operation.result)  # the types of a union are told apart by their tags

    def test_streams_if_it_says_so(self, operation):
        assert inspect.isasyncgenfunction(operation.handler) == operation.is_stream

    def test_bounds_every_text(self, operation):
        for field in msgspec.structs.fields(operation.params):
            schema = msgspec.json.schema(field.type)
            for text in texts_in(schema, schema.get("$defs", {})):
                assert {"maxLength", "pattern", "enum", "const"} & set(text), (
                    f"{operation.name}: {field.name} is unbounded"
                )

    def test_makes_a_command(self, operation):
        command = command_of(operation)
        assert command.help == operation.summary
        assert "as_json" in {parameter.name for parameter in command.params}


def texts_in(schema: Any, definitions: Any) -> list[dict[str, Any]]:
    found = [schema] if schema.get("type") == "string" else []
    for part in [*schema.get("anyOf", []), *filter(None, [schema.get("items") or None])]:
        found += texts_in(part, definitions)
    return found


def values_of(schema: Any, definitions: Any) -> st.SearchStrategy[Any]:
    """What a JSON schema allows, as far as parameters use it."""
    if "$ref" in schema:
        return values_of(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return st.one_of(values_of(part, definitions) for part in schema["anyOf"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    bounds = (schema.get("minimum"), schema.get("maximum"))
    match schema["type"]:
        case "object":
            required = set(schema.get("required", ()))
            values = {name: values_of(part, definitions) for name, part in schema["properties"].items()}
            optional = {name: value for name, value in values.items() if name not in required}
            return st.fixed_dictionaries({name: values[name] for name in required}, optional=optional)
        case "array":
            least = schema.get("minItems", 0)
            return st.lists(values_of(schema["items"], definitions), min_size=least, max_size=least + 3)
        case "string" if "pattern" in schema:
            return st.from_regex(schema["pattern"], fullmatch=True)
        case "string":
            least = schema.get("minLength", 0)
            return st.text(st.characters(codec="utf-8"), min_size=least, max_size=min(schema["maxLength"], least + 20))
        case "integer":
            return st.integers(bounds[0], bounds[1])
        case "number":
            over, under = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
            least, most = bounds[0] if over is None else over, bounds[1] if under is None else under
            open_ends = {"exclude_min": over is not None, "exclude_max": under is not None}
            return st.floats(least, most, **open_ends, allow_nan=False, allow_infinity=False)
        case "boolean":
            return st.booleans()
        case kind:
            assert kind == "null", f"no parameter had the type {kind} so far"
            return st.none()


def test_the_document_is_current():
    assert TARGET.read_text() == document(), "run: python -m daemon.api.document"


def test_every_exit_code_of_a_fault_is_documented():
    from daemon.api.faults import Fault

    assert {Fault(code, "").exit_code for code in STATUSES} <= set(EXITS)


def test_types_are_told_in_words():
    assert type_text(list[str] | None) == "list of text or null"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadRequest("x"), "bad_request"),
        (TimeoutError(), "timed_out"),
        (FileNotFoundError(2, "no", "/x"), "no_such_file"),
        (PermissionError(13, "denied", "/x"), "os_error"),
        (KeyError("x"), "internal"),
        (ExceptionGroup("g", [BadRequest("x")]), "bad_request"),
        (ExceptionGroup("g", [BadRequest("x"), KeyError("y")]), "internal"),
    ],
)
def test_errors_are_told_by_type(error, code):
    assert fault_of(error).code == code


def every_error(base):
    for error in base.__subclasses__():
        yield error
        yield from every_error(error)


def test_every_code_of_an_error_has_its_status_on_purpose():
    import protocols.fetch.dag  # noqa: F401 - to know their errors too
    from agents.errors import AgentError
    from daemon.errors import DaemonError
    from protocols.errors import Remote
    from storage.errors import StorageError

    failures = {
        "failed",
        "remote",
        "bad_home",
        "engine_failed",
        "corrupt",
        "corrupt_block",
        "store_locked",
        "unknown_version",
        "invalid_key",
    }
    codes = {
        fault_of(error("x")).code
        for tree in (AgentError, DaemonError, Remote, StorageError)
        for error in every_error(tree)
    }
    assert codes - set(STATUSES) <= failures


def test_an_error_that_says_it_all_has_no_hint():
    from agents.errors import EngineDied, EngineFailed

    assert fault_of(EngineFailed("tiny has no layer q")) == Fault("engine_failed", "tiny has no layer q")
    assert fault_of(EngineFailed()).text == "The engine refused or failed a request."
    assert "smaller model" in fault_of(EngineDied("it was killed")).hint
    assert fault_of(EngineDied("it was killed; see covey logs")).hint == ""


def test_an_error_of_no_kind_of_its_own_has_no_empty_hint():
    from agents.errors import AgentError
    from daemon.errors import DaemonError
    from storage.errors import StorageError

    assert [fault_of(error("why")).hint for error in (AgentError, DaemonError, StorageError)] == ["", "", ""]


@pytest.mark.parametrize("operation", [one for one in operations().values() if one.begins], ids=lambda one: one.name)
def test_what_is_said_at_the_beginning_needs_no_more_than_what_has_to_be_given(operation: Operation):
    required = {field.name: "given" for field in msgspec.structs.fields(operation.params) if field.required}
    assert "{" not in beginning(operation, required)


def test_a_default_is_told_at_the_beginning_like_what_is_given():
    bench = operations()["net/bench"]
    assert beginning(bench, {"peer": "ann"}) == "sending 32 MB to ann and back"
    assert beginning(bench, {"peer": "ann", "mb": 5}) == "sending 5 MB to ann and back"
