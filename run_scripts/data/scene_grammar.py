# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Captions of scenes: what they claim, the English that says it, and claims that are false."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from run_scripts.data.scene_vocabulary import COLORS, NUMBERS, plural


KINDS = ("object", "attribute", "action", "count", "relation")
OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}

_LISTS = ("{}", "a drawing of {}", "a scene with {}", "{}")
_RELATIONS = {
    "left": ("{} to the left of {}", "{} left of {}", "on the left {}, on the right {}"),
    "right": ("{} to the right of {}", "{} right of {}", "on the right {}, on the left {}"),
    "above": ("{} above {}", "{} over {}", "at the top {}, below it {}"),
    "below": ("{} below {}", "{} under {}", "at the bottom {}, above it {}"),
}
# How often captions tell of a relation, name a part only, do without articles, and tell of an attribute that is there.
_SHARES = {"relation": 0.15, "part": 0.2, "bare": 0.3, "color": 0.3, "size": 0.2, "action": 0.85}
_INSIDE = ("{} inside a frame", "{} in a frame", "a frame with {}")
_OUTSIDE = ", {} outside"


@dataclass(frozen=True)
class Group:
    """Things of one kind: all of a concept that an image holds, alike but for their places.

    As a part of a caption it is a claim: what is None is left open, all else must be so; there are just `count`.

    Args:
        concept: what they are.
        count: how many there are, from 1 to 4.
        color, size, action: of each of them. A size between big and small is None.
        is_framed: whether a frame is around it.
    """

    concept: str
    count: int = 1
    color: str | None = None
    size: str | None = None
    action: str | None = None
    is_framed: bool = False


@dataclass(frozen=True)
class Statement:
    """What a caption claims, and the form in which it says so.

    Args:
        groups: what is named.
        relation: where the first thing is: left, right, above, below (of the second), or inside a frame (and the
            second outside).
        form: a number that chooses among ways to say the same.
        is_bare: whether it is a list of names without articles; only where there is no relation.
    """

    groups: tuple[Group, ...]
    relation: str | None
    form: int
    is_bare: bool = False


def say(statement: Statement) -> str:
    """The English of a statement."""
    names = [_say_group(group, statement.form, statement.is_bare) for group in statement.groups]
    if statement.is_bare:
        return _join(names)
    forms = statement.form // 2
    if statement.relation is None:
        return _LISTS[forms % len(_LISTS)].format(_join(names))
    if statement.relation == "inside":
        text = _INSIDE[forms % len(_INSIDE)].format(names[0])
        return text + (_OUTSIDE.format(_join(names[1:])) if len(names) > 1 else "")
    templates = _RELATIONS[statement.relation]
    text = templates[forms % len(templates)].format(*names[:2])
    return text + (f", with {_join(names[2:])}" if len(names) > 2 else "")


def _say_group(group: Group, form: int, is_bare: bool) -> str:
    words = [word for word in (group.size, group.color) if word is not None]
    words.append(group.concept if group.count == 1 else plural(group.concept))
    if group.action is not None:
        if form % 2:
            words.append("who is" if group.count == 1 else "who are") if group.concept in ("man", "woman") else None
        words.append(group.action)
    if group.count > 1:
        return " ".join([NUMBERS[group.count], *words])
    if is_bare:
        return " ".join(words)
    is_an = words[0][0] in "aeiou" and words[0] != "unicorn"
    return " ".join(["an" if is_an else "a", *words])


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def draw_statement(groups: Sequence[Group], relations: Sequence[tuple[int, str, int]], random: Random) -> Statement:
    """A true statement about an image.

    Args:
        groups: all that is in it.
        relations: (first, relation, second) by the numbers of groups; "inside" has itself as its second.
        random: where it is drawn from.
    """
    form = int(random.random() * 24)
    order = list(range(len(groups)))
    _shuffle(order, random)
    relation = None
    if relations and random.random() < _SHARES["relation"]:
        first, relation, second = relations[int(random.random() * len(relations))]
        others = [number for number in order if number not in (first, second)]
        if relation == "inside":
            order = [first, *others[: int(random.random() * (len(others) + 1))]]
        else:
            order = [first, second, *(others if random.random() < 0.5 else ())]
    elif random.random() < _SHARES["part"]:  # name a part of what is there
        order = order[: 1 + int(random.random() * len(order))]
    is_bare = relation is None and random.random() < _SHARES["bare"]
    return Statement(tuple(_draw_claim(groups[number], random) for number in order), relation, form, is_bare)


def _draw_claim(group: Group, random: Random) -> Group:
    """The same group with some of its attributes left open."""
    color = group.color if random.random() < _SHARES["color"] else None
    size = group.size if random.random() < _SHARES["size"] else None
    action = group.action if random.random() < _SHARES["action"] else None
    return Group(group.concept, group.count, color, size, action)


def _shuffle(values: list, random: Random) -> None:
    for last in range(len(values) - 1, 0, -1):
        other = int(random.random() * (last + 1))
        values[last], values[other] = values[other], values[last]


def is_true(statement: Statement, groups: Sequence[Group], relations: Sequence[tuple[int, str, int]]) -> bool:
    """Whether an image with these groups and relations is as the statement claims."""
    numbers = {group.concept: number for number, group in enumerate(groups)}
    for claim in statement.groups:
        if claim.concept not in numbers:
            return False
        truth = groups[numbers[claim.concept]]
        if claim.count != truth.count or any(
            getattr(claim, name) not in (None, getattr(truth, name)) for name in ("color", "size", "action")
        ):
            return False
    named = [numbers[claim.concept] for claim in statement.groups]
    if statement.relation is None:
        return True
    if statement.relation == "inside":
        return groups[named[0]].is_framed and not any(groups[number].is_framed for number in named[1:])
    return (named[0], statement.relation, named[1]) in relations


def falsify(
    statement: Statement,
    kind: str,
    groups: Sequence[Group],
    actions: dict[str, Sequence[str]],
    random: Random,
) -> Statement | None:
    """A statement that differs in one object, attribute, action, count or relation, and is false.

    Args:
        statement: a true one.
        kind: one of KINDS.
        groups: all that the image holds.
        actions: of every concept what its drawings do; empty for a thing.
        random: where the change is drawn from.

    Returns:
        None, where the statement claims nothing of that kind.
    """
    if kind == "relation":
        return _falsify_relation(statement, groups, random)
    changes = {
        "object": lambda claim: _other_objects(claim, groups, actions),
        "attribute": _other_attributes,
        "action": lambda claim: _other_actions(claim, actions),
        "count": lambda claim: [replace(claim, count=count) for count in NUMBERS if count != claim.count],
    }[kind]
    candidates = [(number, changed) for number, claim in enumerate(statement.groups) if (changed := changes(claim))]
    if not candidates:
        return None
    number, changed = random.choice(candidates)
    claims = list(statement.groups)
    claims[number] = random.choice(changed)
    return replace(statement, groups=tuple(claims))


def _other_objects(claim: Group, groups: Sequence[Group], actions: dict[str, Sequence[str]]) -> list[Group]:
    present = {group.concept for group in groups}
    is_person = claim.concept in ("man", "woman")
    return [
        replace(claim, concept=concept)
        for concept, possible in actions.items()
        if concept not in present
        and (claim.action is None or claim.action in possible)
        and (is_person or concept not in ("man", "woman"))
    ]


def _other_attributes(claim: Group) -> list[Group]:
    changed = [replace(claim, size="small" if claim.size == "big" else "big")] if claim.size is not None else []
    if claim.color is not None:
        changed += [replace(claim, color=color) for color in COLORS if color != claim.color]
    return changed


def _other_actions(claim: Group, actions: dict[str, Sequence[str]]) -> list[Group]:
    if claim.action is None:
        return []
    is_person = claim.concept in ("man", "woman")
    possible = {
        action for concept in actions if (concept in ("man", "woman")) == is_person for action in actions[concept]
    }
    return [replace(claim, action=action) for action in sorted(possible) if action != claim.action]


def _falsify_relation(statement: Statement, groups: Sequence[Group], random: Random) -> Statement | None:
    if statement.relation in OPPOSITES:
        return replace(statement, relation=OPPOSITES[statement.relation])
    if statement.relation != "inside":
        return None
    claims = list(statement.groups)
    if len(claims) > 1:  # what is outside is said to be inside
        claims[0], claims[1] = claims[1], claims[0]
        return replace(statement, groups=tuple(claims))
    outside = [group for group in groups if not group.is_framed]
    if not outside:
        return None
    group = random.choice(outside)
    return replace(statement, groups=(Group(group.concept, group.count, action=group.action),))
