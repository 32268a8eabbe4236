"""Varied structured workloads: what speculation is measured on.

A workload is one schema under several frames: sentences that say the same in different words, filled with different values. A
mechanism that fits one wording gains nothing here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from typing import Any

Schema = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """Prompts whose answers follow `constraint`, in the order of asking: every one has another frame than the one before."""

    name: str
    constraint: dict[str, str]
    prompts: list[str]
    max_new_tokens: int = 96


def chat(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def closed(**properties: Schema) -> dict[str, str]:
    """An object that has exactly these properties, written compactly."""
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"json_schema": json.dumps(schema), "constrained_json_whitespace_pattern": ""}


def filled(frames: list[str], *values: list[str]) -> list[str]:
    """Frames in turn, with every combination of the values."""
    return [chat(frames[i % len(frames)].format(*row)) for i, row in enumerate(product(*values))]


def every_frame(frames: list[str], values: list[str]) -> list[str]:
    """Every value in every frame."""
    return [chat(frame.format(value)) for value in values for frame in frames]


TEXT = {"type": "string", "maxLength": 60}
NAMES = ["Alice", "Bob Miller", "Chen Wei", "Dana", "Emeka Obi", "Farah", "Goran", "Hana Sato"]


def people() -> Workload:
    frames = [
        "Describe a person like {0}, {1} years old, as JSON with name, age, city and tags.",
        "{0} has just turned {1}. Write a profile of them.",
        "Fill in the registration form of a {1} year old called {0}.",
        "Extract who it is about: our neighbour {0} ({1}) moved here from abroad.",
    ]
    city = {"enum": ["London", "Paris", "Rome", "Berlin"]}
    tags = {"type": "array", "items": TEXT, "maxItems": 3}
    constraint = closed(name=TEXT, age={"type": "integer"}, city=city, tags=tags)
    return Workload("people", constraint, filled(frames, NAMES, ["31", "64"]))


def orders() -> Workload:
    frames = [
        "Please send me {1} {0} as soon as you can. What was ordered?",
        "Order no. 7781: {0}, quantity {1}, to be paid on delivery.",
        "We ran out of {0}; I think {1} will do, and I can pay about 20 euros for them.",
        'The customer wrote: "can I have {1} more {0}?" Turn that into an order.',
    ]
    goods = ["pencils", "light bulbs", "blue notebooks", "garden chairs", "coffee filters", "AA batteries"]
    currency = {"enum": ["EUR", "USD", "GBP"]}
    constraint = closed(item=TEXT, quantity={"type": "integer"}, price={"type": "number"}, currency=currency)
    return Workload("orders", constraint, filled(frames, goods, ["3", "40"]))


def events() -> Workload:
    frames = [
        "The {0} takes place in {1} on the third of May 2024.",
        "Save the date! 2023-11-18: {0}, {1}.",
        "Are you coming to {1} next month? Everybody will be at the {0}.",
    ]
    titles = ["spring concert", "city marathon", "book fair", "chess open", "farmers' market"]
    places = ["Lyon", "Porto", "New York"]
    date = {"type": "string", "format": "date"}
    constraint = closed(title=TEXT, date=date, place=TEXT, guests={"type": "array", "items": TEXT, "maxItems": 4})
    return Workload("events", constraint, filled(frames, titles, places))


def tickets() -> Workload:
    frames = [
        "Classify this support ticket: {0}.",
        "A user says that {0}. What should we do, and how urgent is it?",
        "Subject: problem\n\nHello, {0}. Thanks!",
    ]
    complaints = [
        "the app crashes when I open the settings",
        "I was charged twice in March",
        "my parcel has not arrived",
        "I cannot log in with my new phone",
        "the invoice shows the wrong address",
        "videos stop after ten seconds",
    ]
    category = {"enum": ["bug", "billing", "delivery", "account", "other"]}
    constraint = closed(category=category, urgent={"type": "boolean"}, summary=TEXT, next_step=TEXT)
    return Workload("tickets", constraint, every_frame(frames, complaints))


def reviews() -> Workload:
    frames = [
        "Summarise what people think about {0}.",
        "I bought {0} a year ago. It works well but it is loud. Write a review.",
        "Rate {0} from 1 to 5, with reasons.",
    ]
    products = ["this vacuum cleaner", "the Aurora headphones", "a folding bicycle", "the cheap kettle", "an old laptop"]
    constraint = closed(
        product=TEXT,
        rating={"type": "integer", "minimum": 1, "maximum": 5},
        pros={"type": "array", "items": TEXT, "maxItems": 2},
        cons={"type": "array", "items": TEXT, "maxItems": 2},
    )
    return Workload("reviews", constraint, every_frame(frames, products))


def log_lines() -> Workload:
    frames = ["Write one log line of {0}.", "What does {0} print when it starts?", "{0} failed at night. Show the line."]
    services = ["a web server", "a database", "the mail queue", "a backup job", "the printer"]
    regex = r"2024-0[1-9]-[0-2][1-8] [01][0-9]:[0-5][0-9] (INFO|WARN|ERROR) \[[a-z]{2,10}\] [a-zA-Z0-9 ]{4,40}"
    return Workload("log lines", {"regex": regex}, every_frame(frames, services))


def varied() -> list[Workload]:
    return [people(), orders(), events(), tickets(), reviews(), log_lines()]
