# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What scenes are made of: concrete things with short names, of which none is a kind of another."""

from dataclasses import dataclass

from run_scripts.data.code_points import concept_id


# A name must be true of its own drawings alone: a list with "bird" and "owl" would make false captions true.
# Small things are 17 pixels wide, so of those that are much alike, as fox and wolf, one is here.
THINGS = {
    "animals": (
        "🐶 dog, 🐱 cat, 🦊 fox, 🦁 lion, 🐯 tiger, 🐴 horse, 🦄 unicorn, 🐮 cow, 🐷 pig, 🐑 sheep, 🐘 elephant, "
        "🐰 rabbit, 🐼 panda, 🐵 monkey, 🐔 chicken, 🐧 penguin, 🦉 owl, 🐸 frog, 🐊 crocodile, 🐢 turtle, 🐍 snake, "
        "🐳 whale, 🦈 shark, 🐙 octopus, 🦀 crab, 🐌 snail, 🐝 bee, 🐞 ladybug, 🕷 spider, 🦋 butterfly"
    ),
    "food": (
        "🍉 watermelon, 🍋 lemon, 🍌 banana, 🍍 pineapple, 🍎 apple, 🍓 strawberry, 🍅 tomato, 🥑 avocado, "
        "🍆 eggplant, 🥕 carrot, 🍄 mushroom, 🍔 burger, 🍕 pizza, 🌭 hot dog, 🍩 donut, 🍦 ice cream"
    ),
    "plants": "🌻 sunflower, 🌳 tree, 🌵 cactus, 🎃 pumpkin",
    "vehicles": "🚗 car, 🚌 bus, 🚲 bicycle, ⛵ sailboat, ✈ plane, 🚁 helicopter, 🚀 rocket, 🚂 train",
    "places": "🏠 house, 🏰 castle",
    "sky": "🌙 moon, ⭐ star, 🌈 rainbow",
    "clothing": "👕 shirt, 🎒 backpack, 👟 shoe, 👑 crown, 🎩 hat",
    "music": "🎸 guitar, 🥁 drum",
    "games": "🎈 balloon, 🎁 gift, ⚽ soccer ball, 🏀 basketball",
    "objects": (
        "🔔 bell, 📱 phone, 💻 laptop, 📺 television, 📷 camera, 📕 book, ✏ pencil, 🔑 key, 🔨 hammer, 💣 bomb, "
        "☂ umbrella, ⚓ anchor, ⏰ clock"
    ),
    "beings": "👻 ghost, 🤖 robot, ⛄ snowman",
}

# The same animal may be drawn doing something; then it has two drawings.
ANIMAL_ACTIONS = "🐎 horse running, 🐬 dolphin jumping, 🦅 eagle flying"

# Each drawn twice: as a man and as a woman. Some add a sign for man or woman, some are a person beside an object.
PEOPLE_BY_SIGN = (
    "🏃 running, 🚶 walking, 🏊 swimming, 🏄 surfing, 🚣 rowing, 🚴 cycling, 🏋 lifting weights, 🤹 juggling, "
    "🧗 climbing, 🏌 golfing, 🧘 meditating, 🙋 waving"
)
PEOPLE_BY_OBJECT = "🍳 cooking, 🎨 painting, 🎤 singing, 🏫 teaching, 💻 typing"
# Styles from before those signs draw a man.
MEN_WITHOUT_SIGN = (
    "🏃 running, 🚶 walking, 🏊 swimming, 🏄 surfing, 🚣 rowing, 🚴 cycling, 🏋 lifting weights, 🏌 golfing"
)
STYLES_WITHOUT_SIGN = ("emojione", "emojione-v1", "fxemoji")
DANCERS = "🕺 man dancing, 💃 woman dancing"

# Small drawings of things that no caption ever names.
DISTRACTORS = "❤ ✨ 🍃 🎵 ❄ 💧 ⚡ 💬 🔺 🔷 ➕ 💤 ✅ ♻ 🌀 💢"

IRREGULAR_PLURALS = {"sheep": "sheep", "man": "men", "woman": "women", "snowman": "snowmen"}

# Hue (of 360 degrees), saturation and value of the colours that captions name.
COLORS = {
    "red": (0, 0.88, 0.88),
    "yellow": (50, 0.85, 0.98),
    "green": (130, 0.75, 0.68),
    "blue": (215, 0.8, 0.9),
    "purple": (275, 0.65, 0.72),
    "pink": (328, 0.42, 1.0),
}
SIZES = {"small": (0.26, 0.28), "medium": (0.34, 0.38), "big": (0.45, 0.5)}  # sides as a share of the image's
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Subject:
    """What one drawing shows.

    Args:
        concept: its name; of a distractor the empty string.
        category: a group of concepts.
        action: what it does, if anything.
    """

    concept: str
    category: str
    action: str | None = None


def list_subjects(style: str) -> dict[str, Subject]:
    """What each emoji of the vocabulary shows in a style, by its code points."""
    subjects = {}

    def add(characters: str, *subject: str | None) -> None:
        code_points = concept_id("-".join(f"{ord(character):X}" for character in characters))
        subjects[code_points] = Subject(*subject)

    for category, things in THINGS.items():
        for characters, name in _parse(things):
            add(characters, name, category)
    for things, category in ((ANIMAL_ACTIONS, "animals"), (DANCERS, "people")):
        for characters, name in _parse(things):
            concept, action = name.split(" ")
            add(characters, concept, category, action)
    for characters, action in _parse(PEOPLE_BY_SIGN):
        add(f"{characters}\u200d♂", "man", "people", action)
        add(f"{characters}\u200d♀", "woman", "people", action)
    for characters, action in _parse(PEOPLE_BY_OBJECT):
        add(f"👨\u200d{characters}", "man", "people", action)
        add(f"👩\u200d{characters}", "woman", "people", action)
    if style in STYLES_WITHOUT_SIGN:
        for characters, action in _parse(MEN_WITHOUT_SIGN):
            add(characters, "man", "people", action)
    for characters in DISTRACTORS.split(" "):
        add(characters, "", "distractors")
    return subjects


def _parse(things: str) -> list[list[str]]:
    return [thing.split(" ", 1) for thing in things.split(", ")]


def plural(concept: str) -> str:
    """`concept` for more than one."""
    if concept in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[concept]
    if concept.endswith(("s", "x", "sh", "ch")):
        return concept + "es"
    if concept.endswith("y") and concept[-2] not in "aeiou":
        return concept[:-1] + "ies"
    return concept + {"tomato": "es"}.get(concept, "s")
