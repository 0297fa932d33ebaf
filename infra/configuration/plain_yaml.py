"""YAML in which each value has one reading.

PyYAML reads YAML 1.1. There `010` is 8, `1_000` is 1000, `1:30` is 90, `no` is false, and of a key that is there twice
only the last value counts. Here numbers are decimal, true and false are the only truth values, and everything else is
text. Repeated keys, aliases and tags are errors: a configuration needs none of them, and a few nested aliases describe
gigabytes.
"""

import re
from collections.abc import Hashable
from typing import Any, Final

import yaml
from typing_extensions import override

# Kinds of scalars, as in the core schema of YAML 1.2 but without leading zeros, other bases, infinity and NaN. A kind
# has the regular expression of its scalars and the characters that they may begin with.
_SCALARS: Final = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?(0|[1-9][0-9]{0,29})", [*"-+0123456789"]),
    ("float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
)


def load_yaml(text: str) -> Any:
    """Return the value that a YAML text describes.

    Raises:
        yaml.YAMLError: if the text is not YAML, or has a repeated key, an alias or a tag
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error


def dump_yaml(value: Any) -> str:
    """Return YAML that describes a value, with keys in their order, for `load_yaml` and for other readers."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - a name of yaml's, filled below

    @override
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # yaml's stubs lack its types
        if isinstance(event, yaml.AliasEvent):
            raise _problem(f"*{event.anchor} is an alias, which Sternum does not read; write the value itself", event)
        if getattr(event, "tag", None) is not None:
            raise _problem(f"{event.tag} is a tag, which Sternum does not read; leave it out", event)
        return super().compose_node(parent, index)

    @override
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in first:
                    line = first[key.value].start_mark.line + 1
                    raise _problem(f"{key.value!r} is there twice, first in line {line}", key)
                first[key.value] = key
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would take for something else."""


for _kind, _pattern, _first_characters in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), _first_characters)


def _problem(text: str, place: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, place.start_mark)
