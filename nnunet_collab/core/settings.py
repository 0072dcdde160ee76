"""Settings: frozen pydantic dataclasses. Each field states its meaning, unit, bounds and source.

A method declares its settings in a subclass, without a decorator (Python refuses `@dataclass` on it):

    class MySettings(SemiSupervisedSettings):
        tau: float = setting(0.95, "Confidence from which on a pseudo label is used.", gt=0, lt=1, source="section 3")
        ramp_up: float = 0.5  # a new default; meaning and bounds stay

Types are strict: an integer is accepted for a float, but a string is not accepted for a number, nor `True` for 1. NaN
and infinity are refused.
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

# Bounds of all counts. The upper bound is that of a 32-bit integer.
COUNT: Mapping[str, Any] = {"ge": 1, "lt": 2**31}

_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, validate_default=True)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Spec:
    """The arguments of `setting`. Missing ones are taken from the parent's setting of the same name; see `over`."""

    default: Any = ...  # as in pydantic, `...` means that there is no default
    factory: Callable[[], Any] | None = None
    description: str | None = None
    unit: str | None = None
    source: str | None = None
    rule: str | None = None
    bounds: Mapping[str, Any] | None = None
    hint: Any = None

    def over(self, parent: Spec) -> Spec:
        """This setting, completed from the parent's. With a new default, the parent's source is not taken over."""
        if self.default is not ... or self.factory is not None:
            parent = dataclasses.replace(parent, default=..., factory=None, source=None)
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        empty = {field.name: field.default for field in dataclasses.fields(self)}
        return dataclasses.replace(parent, **{name: v for name, v in given.items() if v is not empty[name]})

    def field(self) -> Any:
        """The field for pydantic."""
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
        default: Default value. Without a default and without a factory, a value must be given.
        description: Meaning of the setting, in one sentence or a few.
        unit: Unit, such as "epochs" or "share of the run".
        source: Source of the default, such as "section IV.B" or "ours".
        rule: Rule for a value in words, if type and bounds do not describe it well.
        factory: Function that makes the default, for values that can be changed in place.
        bounds: Bounds of pydantic: `gt`, `ge`, `lt`, `le`, `pattern`, `min_length`, `max_length`.
    """
    return Spec(default, factory, description, unit, source, rule, bounds or None)


@dataclass_transform(frozen_default=True)
class Settings:
    """Base class of all settings. Every subclass becomes a frozen dataclass that checks its values."""

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    specs: ClassVar[Mapping[str, Spec]] = {}  # all fields
    own_specs: ClassVar[Mapping[str, Spec]] = {}  # the fields that the class itself declares

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Turn the subclass into a dataclass.

        Raises:
            CollabError: If the type of a setting is not defined.
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
        # Resolved now, because nnU-Net removes the modules of a user's folder from `sys.modules` after its search.
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
        """Check rules between settings. Subclasses add theirs after `super().__post_init__()`."""


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise CollabError(
            f"{cls.__name__}: the type of every setting must be defined when the class is created; {error}. "
            f"Import it at the top of the file, outside of `if TYPE_CHECKING`."
        ) from error


def _explain_errors(cls: type[Settings]) -> None:
    """Let the constructor, and so `dataclasses.replace`, raise a `CollabError`, and accept lists for tuples."""
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
    """Raise a `CollabError` with the setting, the rule and the value found, unless `condition` is true."""
    if not condition:
        raise CollabError(f"setting {name!r}: {rule}; got {shown(found)}. Change it in {VARIABLE} or in your subclass.")


def refuse_unused(settings: Settings, names: Iterable[str], circumstance: str) -> None:
    """Raise a `CollabError` if a setting that has no effect was changed, because the user expects an effect.

    Args:
        settings: Settings to check.
        names: Names of the settings without effect.
        circumstance: When they have no effect, such as "in the formulation 'official'".
    """
    for name in names:
        default, value = settings.specs[name].default, getattr(settings, name)
        require(value == default, name, f"has no effect {circumstance}, so it must stay {default!r}", value)


def change(default: T, changes: Mapping[str, Any], where: str, prefix: str = "") -> T:
    """A copy of the settings `default` with changed fields, nested fields included.

    A tuple of named settings (the students) can be replaced by a list, or changed by name with an object
    `{"CNN": {"lr": 0.005}}`.

    Args:
        default: Settings of any class.
        changes: Name of the field -> JSON value.
        where: Source of the changes; it starts the messages.
        prefix: Start of the fields' full names in messages.

    Raises:
        CollabError: If a key is unknown or a value is not valid; the message says what is valid.
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
    # Fields that were not changed keep their value, without a round trip through JSON.
    return dataclasses.replace(default, **{key: changed.get(key, getattr(valid, key)) for key in changes})  # type: ignore[type-var]


def check_members(changes: Mapping[str, Any], names: list[str], where: str, name: str) -> None:
    """Raise a `CollabError` unless `changes` maps members of `names` to JSON objects."""
    unknown = [member for member in changes if member not in names]
    if unknown:
        raise CollabError(
            f"{where}: setting {name!r} has no member {', '.join(unknown)}. Its members: {', '.join(names)}."
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
    """The settings as plain JSON values, which `from_json` reads."""
    return cast("dict[str, Any]", json.loads(json.dumps(dataclasses.asdict(settings))))


def from_json(kind: type[T], values: Mapping[str, Any]) -> T:
    """Settings of the class `kind`, as `to_json` wrote them."""
    return _validated(kind, values, kind.__name__)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Name and both values of each setting in which two results of `to_json` differ."""
    lines = []
    for key in sorted({*ours, *theirs}):
        a, b = _by_name(ours.get(key)), _by_name(theirs.get(key))
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} here, {b!r} there")
    return lines


def _by_name(value: Any) -> Any:
    """A list of named settings (the students) as an object by name, so that they are compared one by one."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and "name" in item for item in value):
        return {str(item["name"]): item for item in value}
    return value
