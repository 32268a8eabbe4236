"""Generated pictures and questions: what toy-vlm is trained on, and what tests ask it.

A picture shows one shape, a group of equal shapes, two shapes beside or above each other, or a digit. Everything is drawn
from a `random.Random`, so a seed names a picture. Needs Pillow and nothing else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

COLORS = {
    "red": (214, 40, 40),
    "green": (30, 150, 60),
    "blue": (35, 80, 215),
    "yellow": (245, 205, 30),
    "purple": (140, 50, 170),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "cross")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
CAPITALS = {"France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo"}
# Segments of a digit display that are lit:    a=top b=upper right c=lower right d=bottom e=lower left f=upper left g=middle
SEGMENTS = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")

DESCRIBE = (
    "What's in this image?",
    "What’s in this image?",
    "What is in this image?",
    "What is in the image?",
    "Describe the image.",
    "Describe this image in one sentence.",
)
DESCRIBE_BOTH = (
    "I have two very different images. They are not related at all. Please describe the first image in one sentence, and "
    "then describe the second image in another sentence.",
    "Describe both images.",
)


@dataclass(frozen=True)
class Thing:
    """A coloured shape around a centre, `r` being half its extent."""

    shape: str
    color: str
    x: float
    y: float
    r: float

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """A picture and what is true of it. `text` completes "The image shows ..."; `kind` is single, group, pair or digit."""

    image: Image.Image
    kind: str
    text: str
    things: tuple[Thing, ...]
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dialog:
    """Pictures and the questions and answers about them. `image_first`: whether the pictures stand before the question."""

    images: tuple[Image.Image, ...]
    turns: tuple[tuple[str, str], ...]
    image_first: bool = True


def _draw_thing(draw: ImageDraw.ImageDraw, t: Thing, scale: float) -> None:
    color, x, y, r = COLORS[t.color], t.x * scale, t.y * scale, t.r * scale
    if t.shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=color)
    elif t.shape == "square":
        draw.rectangle((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), fill=color)
    elif t.shape == "triangle":
        draw.polygon(((x, y - r), (x - r, y + 0.9 * r), (x + r, y + 0.9 * r)), fill=color)
    else:
        w = 0.33 * r
        draw.rectangle((x - r, y - w, x + r, y + w), fill=color)
        draw.rectangle((x - w, y - r, x + w, y + r), fill=color)


def _draw_digit(draw: ImageDraw.ImageDraw, digit: int, t: Thing, scale: float) -> None:
    w, h, s = 0.6 * t.r * scale, t.r * scale, 0.2 * t.r * scale
    left, right, top, bottom = t.x * scale - w, t.x * scale + w, t.y * scale - h, t.y * scale + h
    middle = (top + bottom) / 2
    boxes = {
        "a": (left, top, right, top + s),
        "b": (right - s, top, right, middle),
        "c": (right - s, middle, right, bottom),
        "d": (left, bottom - s, right, bottom),
        "e": (left, middle, left + s, bottom),
        "f": (left, top, left + s, middle),
        "g": (left, middle - s / 2, right, middle + s / 2),
    }
    for segment in SEGMENTS[digit]:
        draw.rectangle(boxes[segment], fill=COLORS[t.color])


def _canvas(rng: random.Random, smallest: int) -> tuple[int, int]:
    """Width and height; the long side at most 168, mostly near `smallest`, so that pictures of many sizes meet."""
    largest = (100, 112, 112, 112, 140, 168)
    width = rng.randint(smallest, rng.choice(largest))
    height = rng.randint(smallest, rng.choice(largest))
    return width, height


def _render(rng: random.Random, size: tuple[int, int], things: list[Thing], digit: int | None = None) -> Image.Image:
    """Drawn at twice the size and scaled down: smooth edges. The background is nearly white."""
    shade = rng.randint(235, 255)
    background = tuple(min(255, max(225, shade + rng.randint(-8, 8))) for _ in range(3))
    image = Image.new("RGB", (2 * size[0], 2 * size[1]), background)
    draw = ImageDraw.Draw(image)
    for t in things:
        if digit is None:
            _draw_thing(draw, t, 2.0)
        else:
            _draw_digit(draw, digit, t, 2.0)
    return image.resize(size, Image.Resampling.BOX)


def _article(name: str) -> str:
    return f"a {name}"


def single(rng: random.Random) -> Scene:
    """One shape, in the centre or in a corner."""
    width, height = _canvas(rng, 70)
    row, column = rng.choice(((1, 1), (0, 0), (0, 2), (2, 0), (2, 2)))
    side = min(width, height)
    r = rng.uniform(0.17, 0.23) * side if (row, column) != (1, 1) else rng.uniform(0.2, 0.4) * side
    wobble = 0.02 * side
    x = (r + 0.03 * width, width / 2, width - r - 0.03 * width)[column] + rng.uniform(-wobble, wobble)
    y = (r + 0.03 * height, height / 2, height - r - 0.03 * height)[row] + rng.uniform(-wobble, wobble)
    thing = Thing(rng.choice(SHAPES), rng.choice(list(COLORS)), x, y, r)
    place = "center" if row == 1 else f"{('top', '', 'bottom')[row]} {('left', '', 'right')[column]}"
    return Scene(_render(rng, (width, height), [thing]), "single", _article(thing.name), (thing,), {"place": place})


def group(rng: random.Random) -> Scene:
    """Two to five equal shapes, each in its own cell."""
    width, height = _canvas(rng, 90)
    count, shape, color = rng.randint(2, 5), rng.choice(SHAPES), rng.choice(list(COLORS))
    cells = rng.sample([(i, j) for i in range(3) for j in range(3)], count)
    things = []
    for row, column in cells:
        r = min(width, height) / 3 * rng.uniform(0.34, 0.42)
        free_x, free_y = width / 3 - 2 * r - 2, height / 3 - 2 * r - 2
        x = column * width / 3 + 1 + r + rng.uniform(0, max(0.0, free_x))
        y = row * height / 3 + 1 + r + rng.uniform(0, max(0.0, free_y))
        things.append(Thing(shape, color, x, y, r))
    plural = "crosses" if shape == "cross" else shape + "s"
    text = f"{NUMBERS[count]} {color} {plural}"
    return Scene(_render(rng, (width, height), things), "group", text, tuple(things), {"plural": plural})


def pair(rng: random.Random) -> Scene:
    """Two different shapes, beside or above each other. The text begins with the left or the upper one."""
    width, height = _canvas(rng, 84)
    beside = rng.random() < 0.5
    shapes, colors = rng.sample(SHAPES, 2), rng.choices(list(COLORS), k=2)
    things = []
    for i in range(2):
        r = min(width, height) * rng.uniform(0.16, 0.22)
        along, across = 0.26 + 0.48 * i + rng.uniform(-0.03, 0.03), rng.uniform(0.35, 0.65)
        x, y = (along, across) if beside else (across, along)
        things.append(Thing(shapes[i], colors[i], x * width, y * height, r))
    relation = "to the left of" if beside else "above"
    text = f"a {things[0].name} {relation} a {things[1].name}"
    return Scene(_render(rng, (width, height), things), "pair", text, tuple(things), {"relation": relation})


def digit(rng: random.Random) -> Scene:
    """A digit 0 to 9, large."""
    width, height = _canvas(rng, 64)
    value, color = rng.randrange(10), rng.choice(list(COLORS))
    r = min(height, width) * rng.uniform(0.32, 0.44)
    x, y = width / 2 + rng.uniform(-0.06, 0.06) * width, height / 2 + rng.uniform(-0.04, 0.04) * height
    thing = Thing("digit", color, x, y, r)
    image = _render(rng, (width, height), [thing], value)
    return Scene(image, "digit", f"the digit {value} in {color}", (thing,), {"value": str(value)})


def several(rng: random.Random) -> Scene:
    """Three or four different shapes of different colours, each in a quarter: never asked in tests, to learn looking things up."""
    width, height = _canvas(rng, 84)
    count = rng.choice((3, 4))
    shapes, colors, cells = rng.sample(SHAPES, count), rng.sample(list(COLORS), count), rng.sample(range(4), count)
    things = []
    for shape, color, cell in zip(shapes, colors, cells, strict=True):
        r = min(width, height) * rng.uniform(0.14, 0.2)
        x, y = 0.25 + 0.5 * (cell % 2) + rng.uniform(-0.03, 0.03), 0.25 + 0.5 * (cell // 2) + rng.uniform(-0.03, 0.03)
        things.append(Thing(shape, color, x * width, y * height, r))
    return Scene(_render(rng, (width, height), things), "several", "several shapes", tuple(things))


def scene(rng: random.Random) -> Scene:
    """A picture of any kind."""
    return rng.choice((single, group, pair, digit))(rng)


def _yes_no(rng: random.Random, thing: Thing) -> tuple[str, str]:
    if rng.random() < 0.5:
        return f"Is there a {thing.name} in the image?", f"Yes, there is a {thing.name}."
    shape, color = thing.shape, thing.color
    while (shape, color) == (thing.shape, thing.color):
        shape, color = rng.choice((thing.shape, rng.choice(SHAPES))), rng.choice((thing.color, rng.choice(list(COLORS))))
    return f"Is there a {color} {shape} in the image?", f"No, there is a {thing.name}."


def questions(rng: random.Random, s: Scene) -> list[tuple[str, str]]:
    """All kinds of questions about one picture, with their answers, in random order; describing it is always the first."""
    found: list[tuple[str, str]] = []
    first = s.things[0]
    if s.kind == "several":
        found += [(f"What color is the {t.shape}?", f"It is {t.color}.") for t in s.things]
        found += [(f"What shape is the {t.color} one?", f"It is a {t.shape}.") for t in s.things]
        rng.shuffle(found)
        return found
    if s.kind == "single":
        found.append((f"Where is the {first.shape}?", f"It is in the {s.facts['place']}."))
        found.append(("What shape is it?", f"It is a {first.shape}."))
        found.append(_yes_no(rng, first))
        found.append(("What color is it?", f"It is {first.color}."))
    elif s.kind == "group":
        found.append((f"How many {s.facts['plural']} are there?", f"There are {NUMBERS[len(s.things)]}."))
        found.append(("What color are they?", f"They are {first.color}."))
    elif s.kind == "pair":
        a, b = s.things
        opposite = {"to the left of": "to the right of", "above": "below"}[s.facts["relation"]]
        found.append((f"What is {s.facts['relation']} the {b.shape}?", f"A {a.name}."))
        found.append((f"What is {opposite} the {a.shape}?", f"A {b.name}."))
        thing = rng.choice((a, b))
        found.append((f"What color is the {thing.shape}?", f"It is {thing.color}."))
    else:
        found.append((rng.choice(("Which digit is this?", "What number is this?")), f"It is {s.facts['value']}."))
        found.append(("What color is it?", f"It is {first.color}."))
    rng.shuffle(found)
    return [(rng.choice(DESCRIBE), f"The image shows {s.text}."), *found]


def two_pictures(rng: random.Random) -> Dialog:
    """Two pictures and one question that needs both, or one that needs the right one."""
    kind = rng.choice(("both", "both", "second", "shape", "color", "more", "which"))
    if kind in ("both", "second"):
        a, b = scene(rng), scene(rng)
        if kind == "both":
            turn = (rng.choice(DESCRIBE_BOTH), f"The first image shows {a.text}. The second image shows {b.text}.")
        else:
            number, chosen = rng.choice((("first", a), ("second", b)))
            turn = (f"What is in the {number} image?", f"The {number} image shows {chosen.text}.")
    elif kind == "more":
        a, b = group(rng), single(rng)
        if rng.random() < 0.5:
            a, b = b, a
        turn = ("Which image shows more shapes?", f"The {'first' if len(a.things) > 1 else 'second'} image.")
    else:
        a, b = single(rng), single(rng)
        while kind == "which" and a.things[0].shape == b.things[0].shape:
            b = single(rng)
        turn = _compare(rng, kind, a.things[0], b.things[0])
    return Dialog((a.image, b.image), (turn,), rng.random() < 0.8)


def questions_about_two(rng: random.Random, a: Scene, b: Scene) -> list[tuple[str, str]]:
    """All kinds of questions about two pictures, with their answers."""
    found = [(rng.choice(DESCRIBE_BOTH), f"The first image shows {a.text}. The second image shows {b.text}.")]
    for number, s in (("first", a), ("second", b)):
        found.append((f"What is in the {number} image?", f"The {number} image shows {s.text}."))
    if {a.kind, b.kind} == {"single", "group"}:
        found.append(("Which image shows more shapes?", f"The {'first' if len(a.things) > 1 else 'second'} image."))
    if a.kind == b.kind == "single":
        one, two = a.things[0], b.things[0]
        kinds = ("shape", "color") if one.shape == two.shape else ("shape", "color", "which", "which")
        found += [_compare(rng, kind, one, two) for kind in kinds]
    return found


def _compare(rng: random.Random, kind: str, a: Thing, b: Thing) -> tuple[str, str]:
    if kind == "which":
        number, thing = rng.choice((("first", a), ("second", b)))
        return f"Which image shows the {thing.shape}?", f"The {number} image."
    if kind == "shape":
        same = a.shape == b.shape
        return "Do both images show the same shape?", f"Yes, a {a.shape}." if same else f"No, a {a.shape} and a {b.shape}."
    same = a.color == b.color
    return "Do both images show the same color?", f"Yes, {a.color}." if same else f"No, {a.color} and {b.color}."


def words_only(rng: random.Random) -> Dialog:
    """A question without a picture."""
    kind = rng.randrange(4)
    if kind == 0:
        a = rng.randint(0, 5)
        b = rng.randint(0, 5)
        turn = (f"What is {NUMBERS[a]} plus {NUMBERS[b]}?", f"{NUMBERS[a].capitalize()} plus {NUMBERS[b]} is {NUMBERS[a + b]}.")
    elif kind == 1:
        country = rng.choice(list(CAPITALS))
        turn = (f"What is the capital of {country}?", f"The capital of {country} is {CAPITALS[country]}.")
    elif kind == 2:
        turn = (rng.choice(("Who are you?", "What are you?")), "I am toy-vlm, a very small vision model.")
    else:
        turn = (rng.choice(("Hello!", "Hi!", "Hello")), "Hello! Show me a picture.")
    return Dialog((), (turn,))


def dialog(rng: random.Random, max_turns: int = 1) -> Dialog:
    """Any kind of conversation. `max_turns` questions are asked about a single picture."""
    kind = rng.random()
    if kind < 0.06:
        return words_only(rng)
    if kind < 0.36:
        return two_pictures(rng)
    s = scene(rng)
    asked = questions(rng, s)
    rng.shuffle(asked)
    return Dialog((s.image,), tuple(asked[:max_turns]), rng.random() < 0.6)
