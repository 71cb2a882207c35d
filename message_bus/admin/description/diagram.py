"""A description as a Mermaid flowchart: messages, the subscriptions that read them, the handlers that are called. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from message_bus.admin.description.description import Description, SubscriptionDescription

_PLAIN: Final = frozenset(" _-.,/()")
_CLASSES: Final = (
    "classDef command fill:#fde68a,stroke:#92400e,color:#000",
    "classDef event fill:#bfdbfe,stroke:#1e40af,color:#000",
    "classDef query fill:#e5e7eb,stroke:#374151,color:#000",
    "classDef subscription fill:#ddd6fe,stroke:#5b21b6,color:#000",
)


def mermaid(description: Description) -> str:
    """Return the flowchart, for Markdown pages and the Mermaid tools. Names are escaped, whatever is in them."""
    return "\n".join(["flowchart LR", *(f"    {line}" for line in _lines(description)), ""])


def _lines(description: Description) -> Iterator[str]:
    nodes = {f"m{number}": each for number, each in enumerate(description.messages)}
    ids = {each.name: identity for identity, each in nodes.items() if each.kind != "query"}
    reached: set[str | None] = set()
    edges: list[str] = []
    for identity, message in nodes.items():
        yield f"{identity}([{_label(message.name)}]):::{message.kind}"
    for number, each in enumerate(description.subscriptions):
        mine = f"s{number}"
        yield f"{mine}[[{_label(f'{each.name} ({each.mode})')}]]:::subscription"
        if any(delivery.message not in ids for delivery in each.deliveries):
            yield f"all{number}([{_label(f'everything in the {_log(each)}')}]):::event"
            edges.append(f"all{number} --> {mine}")
        handlers: dict[str, tuple[str, list[str]]] = {}
        for delivery in each.deliveries:
            if delivery.message in ids:
                edges.append(f"{ids[delivery.message]} --> {mine}")
                reached.add(delivery.message)
            for handler in delivery.handlers:
                _, of = handlers.setdefault(handler.path, (handler.name, []))
                of += [] if delivery.message is None else [delivery.message]
        for place, (name, of) in enumerate(handlers.values()):
            yield f"{mine}h{place}[{_label(name)}]"
            text = f"|{_label(', '.join(of))}|" if of else ""
            edges.append(f"{mine} -->{text} {mine}h{place}")
    for identity, message in nodes.items():
        if message.kind == "query" or message.name not in reached:  # called by the bus alone
            for place, handler in enumerate(message.handlers):
                yield f"{identity}h{place}[{_label(handler.name)}]"
                edges.append(f"{identity} -.-> {identity}h{place}")
    yield from edges
    yield from _CLASSES


def _log(subscription: SubscriptionDescription) -> str:
    return "event log" if subscription.log == "events" else subscription.log


def _label(text: str) -> str:
    """A text in quotes, never an empty one; what Mermaid could take for something else is written as a character code."""
    return f'"{"".join(each if _is_plain(each) else f"#{ord(each)};" for each in text) or " "}"'


def _is_plain(character: str) -> bool:
    return character.isalnum() or character in _PLAIN
