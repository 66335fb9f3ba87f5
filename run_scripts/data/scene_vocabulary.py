# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What scenes are made of: concrete things with short names, of which none is a kind of another."""

from dataclasses import dataclass

from run_scripts.data.drawings import concept_id


# A name must be true of its own drawings alone: a list with "bird" and "owl" would make false captions true.
THINGS = {
    "animals": (
        "🐶 dog, 🐱 cat, 🐺 wolf, 🦊 fox, 🦁 lion, 🐯 tiger, 🐴 horse, 🦄 unicorn, 🐮 cow, 🐷 pig, 🐑 sheep, "
        "🐫 camel, 🐘 elephant, 🐭 mouse, 🐰 rabbit, 🐼 panda, 🐨 koala, 🐵 monkey, 🐔 chicken, 🐧 penguin, 🦆 duck, "
        "🦉 owl, 🐸 frog, 🐊 crocodile, 🐢 turtle, 🐍 snake, 🦎 lizard, 🐳 whale, 🦈 shark, 🐙 octopus, 🦀 crab, "
        "🐌 snail, 🐝 bee, 🐞 ladybug, 🕷 spider, 🦂 scorpion, 🦋 butterfly"
    ),
    "food": (
        "🍉 watermelon, 🍋 lemon, 🍌 banana, 🍍 pineapple, 🍎 apple, 🍐 pear, 🍑 peach, 🍓 strawberry, 🍅 tomato, "
        "🥑 avocado, 🍆 eggplant, 🥕 carrot, 🍄 mushroom, 🥐 croissant, 🍔 burger, 🍕 pizza, 🌭 hot dog, 🌮 taco, "
        "🥚 egg, 🍩 donut, 🍪 cookie, 🎂 cake, 🍭 lollipop, 🍦 ice cream, 🍺 beer"
    ),
    "plants": "🌹 rose, 🌻 sunflower, 🌷 tulip, 🌳 tree, 🌵 cactus, 🍁 leaf, 🍀 clover, 🎃 pumpkin",
    "vehicles": (
        "🚗 car, 🚌 bus, 🚑 ambulance, 🚜 tractor, 🚲 bicycle, 🛵 scooter, ⛵ sailboat, 🚢 ship, ✈ plane, "
        "🚁 helicopter, 🚀 rocket, 🚂 train"
    ),
    "places": "🏠 house, 🏰 castle, ⛺ tent, 🌋 volcano, ⛪ church",
    "sky": "☁ cloud, 🌙 moon, ⭐ star, 🌈 rainbow",
    "clothing": "👔 tie, 👕 shirt, 👗 dress, 👜 handbag, 🎒 backpack, 👟 shoe, 👢 boot, 👑 crown, 🎩 hat",
    "music": "🎸 guitar, 🎺 trumpet, 🎻 violin, 🥁 drum, 🎷 saxophone",
    "games": "🎈 balloon, 🎁 gift, 🏆 trophy, ⚽ soccer ball, 🏀 basketball, 🎾 tennis ball, 🎯 target, 🧸 teddy bear",
    "objects": (
        "💍 ring, 💎 diamond, 🔔 bell, 📱 phone, 💻 laptop, 📺 television, 📷 camera, 💡 light bulb, 🕯 candle, "
        "📕 book, ✏ pencil, 🔒 lock, 🔑 key, 🔨 hammer, 💣 bomb, 🛡 shield, 🔬 microscope, 🚪 door, 🛏 bed, "
        "☂ umbrella, ⚓ anchor, ⏰ clock, ✉ envelope, 🚦 traffic light, 📎 paperclip, 🔥 fire"
    ),
    "beings": "👻 ghost, 🤖 robot, 💀 skull, 👽 alien, ⛄ snowman",
}

# The same animal may be drawn doing something; then it has two drawings.
ANIMAL_ACTIONS = "🐎 horse running, 🐬 dolphin jumping, 🦅 eagle flying, 🦇 bat flying, 🕊 dove flying"

# Each drawn twice: as a man and as a woman. Some add a sign for man or woman, some are a person beside an object.
PEOPLE_BY_SIGN = (
    "🏃 running, 🚶 walking, 🏊 swimming, 🏄 surfing, 🚣 rowing, 🚴 cycling, 🏋 lifting weights, 🤹 juggling, "
    "🧗 climbing, 🏌 golfing, 🧘 meditating, 🙋 waving"
)
PEOPLE_BY_OBJECT = "🍳 cooking, 🎨 painting, 🎤 singing, 🏫 teaching, 💻 typing"
DANCERS = "🕺 man dancing, 💃 woman dancing"

# Small drawings of things that no caption ever names.
DISTRACTORS = "❤ ✨ 🍃 🎵 ❄ 💧 ⚡ 💬 🔺 🔷 ➕ 💤 ✅ ♻ 🌀 💢"

IRREGULAR_PLURALS = {"mouse": "mice", "sheep": "sheep", "leaf": "leaves", "man": "men", "woman": "women"}

# Hue (of 360 degrees), saturation and value of the colours that captions name.
COLORS = {
    "red": (0, 0.88, 0.88),
    "yellow": (50, 0.85, 0.98),
    "green": (130, 0.75, 0.68),
    "blue": (215, 0.8, 0.9),
    "purple": (275, 0.65, 0.72),
    "pink": (328, 0.42, 1.0),
}
SIZES = {"small": (0.2, 0.24), "medium": (0.3, 0.36), "big": (0.44, 0.5)}  # sides as a share of the image's
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


def list_subjects() -> dict[str, Subject]:
    """What is drawn by each emoji of the vocabulary, by its code points."""
    subjects = {}

    def add(characters: str, *subject: str | None) -> None:
        code_points = concept_id("-".join(f"{ord(character):X}" for character in characters))
        subjects[code_points] = Subject(*subject)

    for category, things in THINGS.items():
        for thing in things.split(", "):
            characters, name = thing.split(" ", 1)
            add(characters, name, category)
    for text, category in ((ANIMAL_ACTIONS, "animals"), (DANCERS, "people")):
        for thing in text.split(", "):
            characters, name, action = thing.split(" ")
            add(characters, name, category, action)
    for text, man, woman in (
        (PEOPLE_BY_SIGN, "{}\u200d♂", "{}\u200d♀"),
        (PEOPLE_BY_OBJECT, "👨\u200d{}", "👩\u200d{}"),
    ):
        for thing in text.split(", "):
            characters, action = thing.split(" ", 1)
            add(man.format(characters), "man", "people", action)
            add(woman.format(characters), "woman", "people", action)
    for characters in DISTRACTORS.split(" "):
        add(characters, "", "distractors")
    return subjects


def plural(concept: str) -> str:
    """`concept` for more than one."""
    if concept in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[concept]
    if concept.endswith(("s", "x", "sh", "ch")):
        return concept + "es"
    if concept.endswith("y") and concept[-2] not in "aeiou":
        return concept[:-1] + "ies"
    return concept + {"tomato": "es", "volcano": "es"}.get(concept, "s")
