"""Pictures of coloured shapes with questions that only the picture answers: scenes, their drawings, answers, pairs.

A scene is one to four shapes of one kind and one colour in the cells of a 3 x 3 grid:

    question   What is in the picture?     How many shapes are there?     Which colour is it?
    answer     three red circles           three                          red

A wrong answer is the right one of another scene, which differs in one thing that the question asks for. Each pair
occurs twice, with a picture of the one scene and of the other: what is chosen with the first is rejected with the
second. Who does not see the pictures is right in exactly half of the pairs, whatever he prefers.

Everything is a function of a seed. Whether a scene is held out depends on nothing but the scene itself, so no seed can
put a training picture among the held-out ones.

Left out: mixed kinds and colours in a picture, overlapping shapes, other sizes of pictures.
"""

import argparse
import json
import os
import random
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

SIZE = 48  # pixels of a side
CELLS = 3  # of a side of the grid
COUNTS = ("one", "two", "three", "four")
KINDS = ("circle", "square", "triangle")
COLOURS = {"red": (210, 45, 45), "green": (45, 160, 65), "blue": (50, 75, 210), "yellow": (225, 195, 45)}
QUESTIONS = {  # what each asks for
    "What is in the picture?": ("count", "colour", "kind"),
    "How many shapes are there?": ("count",),
    "Which colour is it?": ("colour",),
}
ERROR_RATE = 1 / 4


class Shape(NamedTuple):
    x: int  # of its centre, in pixels
    y: int
    radius: int
    colour: tuple[int, int, int]


class Scene(NamedTuple):
    count: str
    colour: str
    kind: str
    background: int  # a grey
    shapes: tuple[Shape, ...]

    @property
    def held_out(self) -> bool:
        """True for a tenth of all scenes."""
        return zlib.crc32(repr(tuple(self)).encode()) % 10 == 0


def draw_scene(count: str, colour: str, kind: str, rng: random.Random) -> Scene:
    """A scene of these three with everything else at random: cells, places in them, sizes, tones."""
    cell = SIZE // CELLS
    shapes = []
    for number in rng.sample(range(CELLS**2), COUNTS.index(count) + 1):
        radius = rng.randint(5, 6)
        room = cell // 2 - radius - 1
        column, row = number % CELLS, number // CELLS
        x = column * cell + cell // 2 + rng.randint(-room, room)
        y = row * cell + cell // 2 + rng.randint(-room, room)
        red, green, blue = (tone + rng.randint(-25, 25) for tone in COLOURS[colour])
        shapes.append(Shape(x, y, radius, (red, green, blue)))
    return Scene(count, colour, kind, rng.randint(225, 255), tuple(shapes))


def random_scene(rng: random.Random, held_out: bool) -> Scene:
    """A scene of one of the two sets."""
    while True:
        scene = draw_scene(rng.choice(COUNTS), rng.choice([*COLOURS]), rng.choice(KINDS), rng)
        if scene.held_out == held_out:
            return scene


def other_scene(scene: Scene, thing: str, rng: random.Random) -> Scene:
    """A scene of the same set that differs in `thing` (count, colour or kind), drawn anew."""
    values = {"count": COUNTS, "colour": [*COLOURS], "kind": KINDS}[thing]
    now = {name: getattr(scene, name) for name in ("count", "colour", "kind")}
    now[thing] = rng.choice([value for value in values if value != now[thing]])
    while True:
        other = draw_scene(**now, rng=rng)
        if other.held_out == scene.held_out:
            return other


def paint(scene: Scene) -> Any:
    """The scene as a Pillow picture, RGB, SIZE x SIZE."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (SIZE, SIZE), (scene.background,) * 3)
    pencil = ImageDraw.Draw(picture)
    for x, y, radius, colour in scene.shapes:
        left, top, right, bottom = x - radius, y - radius, x + radius, y + radius
        if scene.kind == "circle":
            pencil.ellipse((left, top, right, bottom), fill=colour)
        elif scene.kind == "square":
            pencil.rectangle((left + 1, top + 1, right - 1, bottom - 1), fill=colour)
        else:
            pencil.polygon([(x, top), (left, bottom), (right, bottom)], fill=colour)
    return picture


def answer(scene: Scene, question: str) -> str:
    """The right one."""
    if QUESTIONS[question] == ("count",):
        return scene.count
    if QUESTIONS[question] == ("colour",):
        return scene.colour
    return f"{scene.count} {scene.colour} {scene.kind}{'' if scene.count == COUNTS[0] else 's'}"


def wrong_answer(scene: Scene, question: str, rng: random.Random) -> str:
    """The right one of a scene that differs in one thing that the question asks for."""
    return answer(other_scene(scene, rng.choice(QUESTIONS[question]), rng), question)


def demonstration(scene: Scene, question: str, rng: random.Random, error_rate: float = ERROR_RATE) -> str:
    """What an expert who errs in a share `error_rate` of the answers writes."""
    return wrong_answer(scene, question, rng) if rng.random() < error_rate else answer(scene, question)


def pairs(count: int, seed: int, held_out: bool = True) -> Iterator[tuple[Scene, dict[str, str]]]:
    """`count` rows of prompt, chosen and rejected, each with the scene of its picture; 2n and 2n + 1 are each other's
    mirror image. Questions take turns."""
    rng = random.Random(f"pairs {seed}")
    questions = [*QUESTIONS]
    for number in range(count // 2):
        question = questions[number % len(questions)]
        first = random_scene(rng, held_out)
        second = other_scene(first, rng.choice(QUESTIONS[question]), rng)
        for scene, other in ((first, second), (second, first)):
            yield (
                scene,
                {"prompt": question, "chosen": answer(scene, question), "rejected": answer(other, question)},
            )


def write_pairs(path: str, count: int, seed: int, held_out: bool) -> None:
    """JSON lines, and the pictures in a folder beside them, named as the file is."""
    folder = os.path.splitext(path)[0]
    os.makedirs(folder, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for number, (scene, row) in enumerate(pairs(count, seed, held_out)):
            name = f"{number:04d}.png"
            paint(scene).save(os.path.join(folder, name), optimize=True)
            file.write(json.dumps({"image": f"{os.path.basename(folder)}/{name}", **row}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write pairs of answers to questions about pictures, as JSON lines.")
    parser.add_argument("--pairs", type=int, metavar="N", required=True, help="rows to write, an even number")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--split", choices=["held-out", "train"], default="held-out", help="default: %(default)s")
    parser.add_argument("--output", required=True, help="the JSON Lines file; its pictures go to a folder of its name")
    args = parser.parse_args()
    if args.pairs < 0 or args.pairs % 2:
        parser.error("N must be even, and not negative: each pair occurs twice")
    write_pairs(args.output, args.pairs, args.seed, args.split == "held-out")


if __name__ == "__main__":
    main()
