"""Training data: read a file of any of the forms below line by line, and say of every line what is wrong with it.

    chat         {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    instruction  {"instruction": "...", "input": "...", "output": "..."}     `input` may be missing
    completion   {"prompt": "...", "completion": "..."}
    preference   {"prompt": "...", "chosen": "...", "rejected": "..."}       or each as a list of messages
    text         plain text, or {"text": "..."} a line

A file has one form, told by its first good line. Other keys of a line are its own business.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from agents.engine.messages import Turn
from agents.errors import BadData
from agents.training.settings import Form

MAX_DATA_BYTES: Final = 256 << 20
MAX_LINE_BYTES: Final = 4 << 20
MAX_REASON_CHARS: Final = 300
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

Turns = Annotated[tuple[Turn, ...], Meta(max_length=1000)]

_JSON_NAMES: Final = frozenset({".jsonl", ".ndjson", ".json"})
# Tab, line feed and carriage return are at home in text; U+FFFD stands where an earlier program lost a character.
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_ODD: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]")


class Dialogue(NamedTuple):
    """A chat; what the assistant says is learned."""

    turns: tuple[Turn, ...]


class Continuation(NamedTuple):
    """A text and how it goes on; `answer` is learned. A document is one with an empty prompt."""

    prompt: str
    answer: str


class Preference(NamedTuple):
    """Two answers, of which the first is the better. A prompt of turns is asked as a chat, a text as it stands."""

    prompt: str | tuple[Turn, ...]
    chosen: str
    rejected: str


Body = Dialogue | Continuation | Preference


class Record(NamedTuple):
    """One example as the file has it: the number of its line, and its group, where the user names one."""

    line: int
    body: Body
    stratum: str | None = None


class Problem(NamedTuple):
    """What is wrong with a line."""

    line: int
    text: str


class _Chat(msgspec.Struct, frozen=True):
    messages: Turns


class _Instruction(msgspec.Struct, frozen=True):
    instruction: str
    output: str
    input: str = ""


class _Completion(msgspec.Struct, frozen=True):
    prompt: str
    completion: str


class _Preference(msgspec.Struct, frozen=True):
    chosen: str | Turns
    rejected: str | Turns
    prompt: str | Turns = ""


class _Text(msgspec.Struct, frozen=True):
    text: str


_SHAPES: Final[dict[Form, type[msgspec.Struct]]] = {
    "preference": _Preference,  # first: it too has a prompt
    "completion": _Completion,
    "chat": _Chat,
    "instruction": _Instruction,
    "text": _Text,
}
_KEYS: Final[dict[Form, frozenset[str]]] = {
    "preference": frozenset({"chosen", "rejected"}),
    "completion": frozenset({"prompt", "completion"}),
    "chat": frozenset({"messages"}),
    "instruction": frozenset({"instruction", "output"}),
    "text": frozenset({"text"}),
}
_EXAMPLES: Final[dict[Form, str]] = {
    "chat": '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "instruction": '{"instruction": "...", "input": "...", "output": "..."}',
    "completion": '{"prompt": "...", "completion": "..."}',
    "preference": '{"prompt": "...", "chosen": "...", "rejected": "..."}',
    "text": '{"text": "..."}',
}


def read_data(path: Path) -> bytes:
    """The file, within its bounds. Raises: BadData."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DATA_BYTES + 1)
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_DATA_BYTES:
        raise BadData(f"{path} is over {MAX_DATA_BYTES} bytes: train on a part of it")
    if not data.strip():
        raise BadData(f"{path} is empty")
    return data


def detect(name: str, data: bytes) -> tuple[Form, bool]:
    """The form of the data, and whether it is JSON, a record a line. Raises: BadData for JSON of no known form."""
    data = data.removeprefix(BYTE_ORDER_MARK)
    is_json = Path(name).suffix.lower() in _JSON_NAMES
    for number, line in _lines(data):
        fields = _object(line)
        if fields is None:
            if not is_json:
                return "text", False
            continue
        for form, keys in _KEYS.items():
            if keys <= fields.keys():
                return form, True
        if is_json:
            there = ", ".join(sorted(map(repr, fields)))[:100]
            raise BadData(
                f"{name}: line {number} has {there or 'no keys'}, which is none of the forms that can be trained on: "
                f"{'; '.join(_EXAMPLES.values())}"
            )
        return "text", False
    number = next((number for number, _ in _lines(data)), 1)
    raise BadData(f"line {number}: not a JSON object, nor is any other line of {name}: a .jsonl file has one a line")


def parse(data: bytes, form: Form, *, is_json: bool, stratify: str = "") -> tuple[list[Record], list[Problem]]:
    """The records of the data, and what is wrong with the other lines. `stratify` names the field of the group."""
    data = data.removeprefix(BYTE_ORDER_MARK)
    if not is_json:
        return _parse_text(data)
    records: list[Record] = []
    problems: list[Problem] = []
    for number, line in _lines(data):
        try:
            records.append(_record(number, line, form, stratify))
        except BadData as error:
            problems.append(Problem(number, str(error)[:MAX_REASON_CHARS]))
    return records, problems


def odd_characters(record: Record) -> str:
    """The first character that has no place in text, in words; empty where there is none."""
    for text in texts_of(record.body):
        if found := _ODD.search(text):
            char = found[0]
            return "U+FFFD, which stands for a lost character" if char == "\ufffd" else f"control character {char!r}"
    return ""


def texts_of(body: Body) -> Iterator[str]:
    """Every text of an example."""
    for part in body:
        if isinstance(part, str):
            yield part
        else:
            yield from (turn.content for turn in part)


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that hold anything, by number."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield number, line


def _object(line: bytes) -> dict[str, Any] | None:
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _parse_text(data: bytes) -> tuple[list[Record], list[Problem]]:
    """The whole file as one document."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{data[error.start]:02x} is not UTF-8. Save the file as UTF-8"
        return [], [Problem(data.count(b"\n", 0, error.start) + 1, byte)]
    nul = text.find("\0")
    if nul >= 0:
        return [], [Problem(text.count("\n", 0, nul) + 1, "a NUL character. This is not a text file")]
    return [Record(1, Continuation("", text.replace("\r\n", "\n")))], []


def _record(number: int, line: bytes, form: Form, stratify: str) -> Record:
    if len(line) > MAX_LINE_BYTES:
        raise BadData(f"{len(line)} bytes; the limit is {MAX_LINE_BYTES}")
    try:
        body = _body(msgspec.json.decode(line, type=_SHAPES[form]))
        stratum = _stratum(msgspec.json.decode(line, type=dict[str, Any]), stratify) if stratify else None
    except UnicodeDecodeError as error:
        raise BadData(f"byte 0x{line[error.start]:02x} is not UTF-8") from None
    except msgspec.ValidationError as error:
        raise BadData(f"{error}. A line is {_EXAMPLES[form]}") from None
    except RecursionError:
        raise BadData("nested too deep") from None
    except msgspec.DecodeError as error:
        raise BadData(_why_not(line, error)) from None
    return Record(number, body, stratum)


def _why_not(line: bytes, error: msgspec.DecodeError) -> str:
    if _SURROGATE.search(line):
        return f"half of a surrogate pair, which is no character, or not JSON ({error})"
    return f"not JSON ({error})"


def _stratum(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str | int | float | bool):
        raise BadData(f"no text or number in its field {name[:64]!r}, by which the data is to be divided")
    return str(value)[:200]


def _body(shape: msgspec.Struct) -> Body:
    """Raises: BadData where there is nothing to learn."""
    match shape:
        case _Chat():
            if not any(turn.role == "assistant" and turn.content.strip() for turn in shape.messages):
                raise BadData("no answer of the assistant to learn from")
            return Dialogue(shape.messages)
        case _Instruction():
            _refuse_empty(shape.instruction, "instruction")
            _refuse_empty(shape.output, "output")
            asked = f"{shape.instruction}\n\n{shape.input}" if shape.input.strip() else shape.instruction
            return Dialogue((Turn("user", asked), Turn("assistant", shape.output)))
        case _Completion():
            _refuse_empty(shape.completion, "completion")
            return Continuation(shape.prompt, shape.completion)
        case _Text():
            _refuse_empty(shape.text, "text")
            return Continuation("", shape.text)
        case _Preference():
            return _preference(shape)
    raise AssertionError("every shape is told above")


def _preference(shape: _Preference) -> Preference:
    before, chosen = _answer(shape.chosen, "chosen")
    before_other, rejected = _answer(shape.rejected, "rejected")
    if before != before_other:
        raise BadData("chosen and rejected answer different chats")
    if chosen == rejected:
        raise BadData("chosen and rejected are the same: there is nothing to prefer")
    prompt = shape.prompt
    if before:
        asked = (Turn("user", prompt),) if isinstance(prompt, str) and prompt else tuple(prompt or ())
        # Data sets often repeat the prompt at the head of both chats.
        prompt = before if before[: len(asked)] == asked else (*asked, *before)
    if not prompt:
        raise BadData("no prompt")
    return Preference(prompt, chosen, rejected)


def _answer(value: str | Sequence[Turn], what: str) -> tuple[tuple[Turn, ...], str]:
    """What stands before the answer, and the answer."""
    if isinstance(value, str):
        _refuse_empty(value, what)
        return (), value
    if not value or value[-1].role != "assistant":
        raise BadData(f"{what} does not end with the assistant's answer")
    _refuse_empty(value[-1].content, what)
    return tuple(value[:-1]), value[-1].content


def _refuse_empty(text: str, what: str) -> None:
    if not text.strip():
        raise BadData(f"{what} is empty: there is nothing to learn from")
