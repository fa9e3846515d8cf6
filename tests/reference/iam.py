"""What a set of IAM policies allows, by AWS's rules for one account: an explicit deny wins, then an allow, else no.

Knows the elements and condition operators that infra/ uses, and refuses any other.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

KNOWN = {"Sid", "Effect", "Action", "Resource", "Condition"}
OPERATORS = {"StringEquals"}


def allows(documents: Iterable[dict], action: str, resource: str, context: Mapping[str, str] | None = None) -> bool:
    """Whether policies that are attached to one identity allow it an action on a resource.

    Args:
        documents: the policies.
        action: such as "s3:GetObject".
        resource: its ARN.
        context: condition keys of the request, such as "aws:RequestTag/team".
    """
    effects = set()
    for document in documents:
        for statement in as_list(document["Statement"]):
            assert statement.keys() <= KNOWN, f"unknown elements in {statement}"
            if (
                any(matches(pattern.lower(), action.lower()) for pattern in as_list(statement["Action"]))
                and any(matches(pattern, resource) for pattern in as_list(statement["Resource"]))
                and fulfilled(statement.get("Condition", {}), context or {})
            ):
                effects.add(statement["Effect"])
    return effects == {"Allow"}


def fulfilled(condition: dict, context: Mapping[str, str]) -> bool:
    """Every key of the condition must be in the request, with one of the values."""
    assert condition.keys() <= OPERATORS, f"unknown operators in {condition}"
    return all(
        context.get(key) in as_list(values) for operands in condition.values() for key, values in operands.items()
    )


def matches(pattern: str, text: str) -> bool:
    """Where `*` stands for any characters and `?` for one."""
    parts = ({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in pattern)
    return re.fullmatch("".join(parts), text, re.DOTALL) is not None


def as_list(value: Any) -> list:
    """One value or many, as the policy language has both."""
    return value if isinstance(value, list) else [value]
