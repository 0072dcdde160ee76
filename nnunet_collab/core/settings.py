"""Settings: frozen pydantic dataclasses whose fields carry their meaning, unit, bounds and source.

A method declares its settings in a subclass, without a decorator (Python refuses `@dataclass` on it):

    class MySettings(SemiSupervisedSettings):
        tau: float = setting(0.95, "Confidence from which on a pseudo label is used.", gt=0, lt=1, source="section 3")
        ramp_up: float = 0.5  # another default; meaning and bounds stay

Types are strict: an integer is taken for a float, but no text for a number and no `True` for 1. Numbers are finite.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import dataclass_transform

from nnunet_collab.core.errors import CollabError
from nnunet_collab.core.setting_words import Schema, explain, shown

VARIABLE = "nnUNet_collab_settings"

# Bounds of what is counted; the upper one is what a 32-bit integer holds.
COUNT: Mapping[str, Any] = {"ge": 1, "lt": 2**31}

_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, validate_default=True)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Spec:
    """What `setting` was given. What was left out, a parent's setting of that name fills; see `over`."""

    default: Any = ...  # as in pydantic: none
    factory: Callable[[], Any] | None = None
    description: str | None = None
    unit: str | None = None
    source: str | None = None
    rule: str | None = None
    bounds: Mapping[str, Any] | None = None
    hint: Any = None

    def over(self, parent: Spec) -> Spec:
        """This setting, with what it leaves out taken from the parent's; the source of another default is not."""
        if self.default is not ... or self.factory is not None:
            parent = dataclasses.replace(parent, default=..., factory=None, source=None)
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        empty = {field.name: field.default for field in dataclasses.fields(self)}
        return dataclasses.replace(parent, **{name: v for name, v in given.items() if v is not empty[name]})

    def field(self) -> Any:
        """As pydantic takes it."""
        told = {"unit": self.unit, "source": self.source, "rule": self.rule}
        return Field(
            **({"default_factory": self.factory} if self.factory else {"default": self.default}),
            description=self.description,
            json_schema_extra={key: value for key, value in told.items() if value},
            **(self.bounds or {}),
        )


def setting(
    default: Any = ...,
    description: str | None = None,
    *,
    unit: str | None = None,
    source: str | None = None,
    rule: str | None = None,
    factory: Callable[[], Any] | None = None,
    **bounds: Any,
) -> Any:
    """A field of a settings class.

    Args:
        default: Its default; without one, and without a factory, the field must be given.
        description: What it means, in one or a few sentences.
        unit: Such as "epochs" or "share of the run".
        source: Where the default is from, such as "section IV.B" or "ours".
        rule: What a value must be, in words, where type and bounds do not say it well.
        factory: Makes the default, where that may be changed in place.
        bounds: pydantic's: `gt`, `ge`, `lt`, `le`, `pattern`, `min_length`, `max_length`.
    """
    return Spec(default, factory, description, unit, source, rule, bounds or None)


@dataclass_transform(frozen_default=True)
class Settings:
    """Base of all settings; every subclass becomes a frozen dataclass that checks its values."""

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    specs: ClassVar[Mapping[str, Spec]] = {}  # of all fields
    own_specs: ClassVar[Mapping[str, Spec]] = {}  # of those that the class itself declares

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Make a dataclass of the class.

        Raises:
            CollabError: If the type of a setting is not known.
        """
        super().__init_subclass__(**keywords)
        inherited: dict[str, Spec] = {}
        for base in reversed(cls.__mro__[1:]):
            inherited |= vars(base).get("own_specs", {})
        annotations = cls.__annotations__ = dict(vars(cls).get("__annotations__", {}))
        own = [*annotations, *(name for name in inherited if name in vars(cls) and name not in annotations)]
        # Dataclasses give a class with two parents the fields of the first, even those that only the second changed.
        again = inherited if sum(issubclass(base, Settings) for base in cls.__bases__) > 1 else own
        for name in (*own, *again):
            if name in inherited:
                annotations.setdefault(name, inherited[name].hint)
        # Resolved now: nnU-Net forgets the modules of a user's folder once it has found a trainer in them.
        annotations.update({name: hint for name, hint in _hints(cls).items() if name in annotations})
        specs = {}
        for name, hint in annotations.items():
            if ClassVar not in (hint, typing.get_origin(hint)):
                value = vars(cls).get(name, ...)
                given = value if isinstance(value, Spec) else Spec(value)
                specs[name] = dataclasses.replace(given.over(inherited.get(name, Spec())), hint=hint)
                setattr(cls, name, specs[name].field())
        cls.own_specs = {name: specs[name] for name in own if name in specs}
        cls.specs = {**inherited, **specs}
        pydantic_dataclass(frozen=True, config=_CONFIG)(cls)
        _explain_errors(cls)

    def __post_init__(self) -> None:
        """Rules that hold between settings; subclasses add theirs after `super().__post_init__()`."""


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise CollabError(
            f"{cls.__name__}: the type of every setting must be known when the class is made; {error}. "
            f"Import it at the top of the file, outside of `if TYPE_CHECKING`."
        ) from error


def _explain_errors(cls: type[Settings]) -> None:
    """Let the constructor, and so `dataclasses.replace`, raise our error instead of pydantic's; and take lists."""
    checked = cls.__init__

    @functools.wraps(checked)
    def init(self: Settings, *args: Any, **values: Any) -> None:
        for name, value in values.items():
            if isinstance(value, list) and name in cls.specs and _is_tuple(cls.specs[name].hint):
                values[name] = tuple(value)
        try:
            checked(self, *args, **values)
        except ValidationError as error:
            raise CollabError(explain(error, schema_of(cls), cls.__name__)) from None

    cls.__init__ = init  # type: ignore[method-assign, assignment]


def _is_tuple(hint: Any) -> bool:
    return any(typing.get_origin(part) is tuple for part in (hint, *typing.get_args(hint)))


def schema_of(kind: type) -> Schema:
    """The JSON schema of a settings class, as pydantic makes it."""
    return TypeAdapter(kind).json_schema()


def require(condition: bool, name: str, rule: str, found: object) -> None:
    """Raise a `CollabError` that names the setting, the rule and what was found, unless `condition` holds."""
    if not condition:
        raise CollabError(f"setting {name!r}: {rule}; got {shown(found)}. Change it in {VARIABLE} or in your subclass.")


def refuse_unused(settings: Settings, names: Iterable[str], circumstance: str) -> None:
    """Raise a `CollabError` if a setting that has no effect was changed: whoever changed it believes that it has.

    Args:
        settings: A settings dataclass.
        names: Of the settings without effect.
        circumstance: Under which they have none, such as "in the formulation 'official'".
    """
    for name in names:
        default, value = settings.specs[name].default, getattr(settings, name)
        require(value == default, name, f"has no effect {circumstance}, so it must stay {default!r}", value)


def change(default: T, changes: Mapping[str, Any], where: str, prefix: str = "") -> T:
    """A copy of the settings `default` with the given fields changed, nested ones too.

    A tuple of named settings (the students) may be given whole, as a list, or changed by name, as an object
    `{"CNN": {"lr": 0.005}}`.

    Args:
        default: Settings of any class.
        changes: JSON values by name of the field.
        where: Where they are from, for messages.
        prefix: Of the fields' names in messages.

    Raises:
        CollabError: If a key is unknown or a value is not valid; the message says what is.
    """
    changed: dict[str, Any] = {}
    for key, value in changes.items():
        current = getattr(default, key, None)
        if isinstance(value, Mapping) and isinstance(current, Settings):
            changed[key] = change(current, value, where, f"{prefix}{key}.")
        elif isinstance(value, Mapping) and current and isinstance(current, tuple) and isinstance(current[0], Settings):
            check_members(value, [member.name for member in current], where, prefix + key)
            changed[key] = tuple(
                change(member, value.get(member.name, {}), where, f"{prefix}{key}.{member.name}.") for member in current
            )
    plain = {**to_json(default), **changes, **{key: _plain(value) for key, value in changed.items()}}
    valid = _validated(type(default), plain, where, prefix)
    # What was not changed stays as it is, not as JSON would give it back.
    return dataclasses.replace(default, **{key: changed.get(key, getattr(valid, key)) for key in changes})  # type: ignore[type-var]


def check_members(changes: Mapping[str, Any], names: list[str], where: str, name: str) -> None:
    """Raise a `CollabError` unless `changes` maps some of `names` to the changes of each."""
    unknown = [member for member in changes if member not in names]
    if unknown:
        raise CollabError(
            f"{where}: setting {name!r}: no member is called {', '.join(unknown)}. There are: {', '.join(names)}."
        )
    for member, change_of_one in changes.items():
        if not isinstance(change_of_one, Mapping):
            raise CollabError(
                f"{where}: setting '{name}.{member}' must be a JSON object; "
                f"got {shown(change_of_one)} ({type(change_of_one).__name__})."
            )


def _validated(kind: type[T], plain: Mapping[str, Any], where: str, prefix: str = "") -> T:
    try:
        return TypeAdapter(kind).validate_json(json.dumps(plain))
    except ValidationError as error:
        raise CollabError(explain(error, schema_of(kind), where, prefix)) from None


def _plain(value: Any) -> Any:
    return [to_json(member) for member in value] if isinstance(value, tuple) else to_json(value)


def to_json(settings: Any) -> dict[str, Any]:
    """The settings as plain JSON values; `from_json` reads them back."""
    return cast("dict[str, Any]", json.loads(json.dumps(dataclasses.asdict(settings))))


def from_json(kind: type[T], values: Mapping[str, Any]) -> T:
    """Settings of the class `kind`, as `to_json` wrote them."""
    return _validated(kind, values, kind.__name__)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the settings in which two results of `to_json` differ, with both values."""
    lines = []
    for key in sorted({*ours, *theirs}):
        a, b = _by_name(ours.get(key)), _by_name(theirs.get(key))
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} here, {b!r} there")
    return lines


def _by_name(value: Any) -> Any:
    """A list of named things (the students) as an object by name, so that what differs in one of them can be told."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and "name" in item for item in value):
        return {str(item["name"]): item for item in value}
    return value
