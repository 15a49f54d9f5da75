"""The values of arguments and options, held to what the operation declares before anything is sent."""

import math
import typing
from typing import Any, Final, Literal

import click
import msgspec

_WORDS: Final = {
    "`int`": "a whole number",
    "`float`": "a number",
    "`str`": "a text",
    "`array`": "a list",
    "of length ": "with a length ",
}


class Declared(click.ParamType[Any]):
    """A value of a declared type: text in, checked, text or number out; a list is read at its commas."""

    name = "text"

    def __init__(self, kind: Any, form: str = "") -> None:
        """`kind` is the annotation of the parameter; `form` tells people how a text must look."""
        self._kind = kind
        self._form = form
        self._bare = bare(kind)[0]
        self.name = {int: "integer", float: "float"}.get(self._bare, "text")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Raises: BadParameter, in words."""
        is_list = typing.get_origin(self._bare) is tuple
        read = [part.strip() for part in value.split(",") if part.strip()] if is_list else value
        try:
            checked = msgspec.convert(read, self._kind, strict=False)
        except msgspec.ValidationError as error:
            self.fail(self._in_words(str(error)), param, ctx)
        if isinstance(checked, float) and not math.isfinite(checked):
            self.fail("expected a finite number", param, ctx)
        return value if is_list else checked

    def _in_words(self, text: str) -> str:
        choices = typing.get_args(item(self._bare)) if typing.get_origin(item(self._bare)) is Literal else ()
        if choices:
            return f"choose from {', '.join(choices)}"
        if "regex" in text:
            return self._form or "it does not have the form that is asked for"
        text = text.partition(" - at `")[0].partition(", got ")[0].replace(" | null`", "`")
        for technical, plain in _WORDS.items():
            text = text.replace(technical, plain)
        return text[0].lower() + text[1:]


def bare(kind: Any) -> tuple[Any, msgspec.Meta | None]:
    """The bare type (without Annotated and `| None`) and its Meta."""
    meta = None
    while True:
        if typing.get_origin(kind) is typing.Annotated:
            kind, *rest = typing.get_args(kind)
            meta = next((one for one in rest if isinstance(one, msgspec.Meta)), meta)
            continue
        inner = [one for one in typing.get_args(kind) if one is not type(None)]
        if len(inner) == 1 and type(None) in typing.get_args(kind):
            kind = inner[0]
            continue
        return kind, meta


def item(kind: Any) -> Any:
    """The bare type of a list's items, or the type itself."""
    return bare(typing.get_args(kind)[0])[0] if typing.get_origin(kind) is tuple else kind
