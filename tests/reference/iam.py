"""Evaluation of IAM policies by AWS's rules for one account: an explicit deny wins, then an allow; the default is deny.

Only elements and condition operators that infra/ uses are implemented; any other fails an assertion.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

KNOWN = {"Sid", "Effect", "Action", "Resource", "Condition"}
OPERATORS = {"StringEquals"}


def allows(documents: Iterable[dict], action: str, resource: str, context: Mapping[str, str] | None = None) -> bool:
    """Return whether the policies of an identity allow it an action on a resource.

    Args:
        documents: Policies that are attached to the identity.
        action: Action such as "s3:GetObject".
        resource: ARN of the resource.
        context: Values of the request's condition keys, such as "aws:RequestTag/team".
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
    """Return whether the request has every key of the condition, with one of its values."""
    assert condition.keys() <= OPERATORS, f"unknown operators in {condition}"
    return all(
        context.get(key) in as_list(values) for operands in condition.values() for key, values in operands.items()
    )


def matches(pattern: str, text: str) -> bool:
    """Return whether the text matches the pattern, in which `*` stands for any characters and `?` for one."""
    parts = ({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in pattern)
    return re.fullmatch("".join(parts), text, re.DOTALL) is not None


def as_list(value: Any) -> list:
    """Return a list, also of a single value: the policy language has both."""
    return value if isinstance(value, list) else [value]
