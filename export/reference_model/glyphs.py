"""The pictures are Noto Color Emoji glyphs on plain, named background colours.

The font is Debian's ``fonts-noto-color-emoji`` (SIL Open Font License 1.1).
"""

from __future__ import annotations

import os
import unicodedata
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

FONT_PATHS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
)
FONT_SIZE = 109  # the font's only bitmap strike (136 x 128 px)

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "gray": (128, 128, 128),
    "red": (214, 40, 40),
    "orange": (247, 140, 30),
    "yellow": (250, 220, 50),
    "green": (40, 150, 60),
    "blue": (40, 90, 220),
    "purple": (130, 50, 170),
    "pink": (250, 150, 190),
}

# Glyph, then names; the Unicode name is among them unless nobody would type it. "+" marks a plural.
_CORE = """
🍎 red apple, apple | 🍏 green apple | 🍐 pear | 🍊 tangerine, orange fruit | 🍋 lemon | 🍌 banana | 🍉 watermelon
🍇 +grapes | 🍓 strawberry | 🍒 +cherries | 🍑 peach | 🍍 pineapple | 🥝 kiwifruit, kiwi | 🍅 tomato | 🥥 coconut
🥑 avocado | 🍆 aubergine, eggplant | 🥕 carrot | 🌽 ear of maize, corn | 🥒 cucumber | 🥦 broccoli | 🍄 mushroom
🍞 bread | 🥐 croissant | 🥨 pretzel | 🧀 cheese wedge, cheese | 🍔 hamburger | 🍟 +french fries | 🌭 hot dog
🍕 slice of pizza, pizza | 🌮 taco | 🍳 cooking, fried egg | 🍿 popcorn | 🍦 soft ice cream, ice cream
🍩 doughnut, donut | 🍪 cookie | 🎂 birthday cake | 🍫 chocolate bar, chocolate | 🍭 lollipop | 🍯 honey pot
☕ hot beverage, cup of coffee | 🍷 wine glass, glass of wine | 🍺 beer mug, beer
🐶 dog face, dog | 🐱 cat face, cat | 🐭 mouse face, mouse | 🐰 rabbit face, rabbit | 🦊 fox face, fox
🐻 bear face, bear | 🐼 panda face, panda | 🐯 tiger face, tiger | 🦁 lion face, lion | 🐮 cow face, cow
🐷 pig face, pig | 🐸 frog face, frog | 🐵 monkey face, monkey | 🐔 chicken | 🐧 penguin | 🦉 owl | 🐴 horse face, horse
🦄 unicorn face, unicorn | 🐝 honeybee, bee | 🦋 butterfly | 🐌 snail | 🐞 lady beetle, ladybug | 🐢 turtle
🐍 snake | 🐙 octopus | 🦀 crab | 🐠 tropical fish, fish | 🐬 dolphin | 🐳 spouting whale, whale | 🐘 elephant
🌵 cactus | 🌲 evergreen tree | 🌴 palm tree | 🍀 four leaf clover | 🌹 rose | 🌻 sunflower | 🌷 tulip
🌍 earth globe, planet earth | 🌙 crescent moon, moon | ⭐ star | 🔥 fire | 🌈 rainbow | ⛄ snowman
⚽ soccer ball | 🏀 basketball | 🎸 guitar | 🎺 trumpet | 🚗 automobile, car | 🚌 bus | 🚲 bicycle | 🚀 rocket
⛵ sailboat | 🏠 house building, house | 🔑 key | 🔔 bell | 🎁 wrapped present, gift | 🎈 balloon | 👑 crown
💎 gem stone, diamond | 📷 camera | 📚 +books | ⏰ alarm clock | 💡 electric light bulb, light bulb | 🔒 lock
🎃 jack-o-lantern, halloween pumpkin | 👻 ghost | 🤖 robot face, robot | 💀 skull | ❤ heavy black heart, red heart
"""

# Names that are signs, letters or people in variants rather than pictures of things.
_NOT_PICTURES = (
    "clock face", "arrow", "button", "sign", "square", "circle", "keycap", "regional", "symbol", "modifier",
    "squared", "negative", "variation", "ideograph", "input", "japanese", "latin", "hair component", "moon symbol",
)  # fmt: skip


class Glyph:
    """One emoji: its character, its names (first the one from Unicode) and whether they are plural."""

    __slots__ = ("char", "names", "plural")

    def __init__(self, char: str, names: tuple[str, ...], plural: bool = False) -> None:
        self.char, self.names, self.plural = char, names, plural

    def __repr__(self) -> str:
        return f"Glyph({self.char!r}, {self.names!r})"


def core_glyphs() -> list[Glyph]:
    """List the curated objects of the built-in model."""
    out = []
    for entry in _CORE.replace("\n", "|").split("|"):
        if entry.strip():
            char, names = entry.strip().split(" ", 1)
            plural = names.startswith("+")
            out.append(Glyph(char, tuple(n.strip() for n in names.lstrip("+").split(",")), plural))
    return out


def all_glyphs() -> list[Glyph]:
    """List every single-code-point glyph of the font that is a picture; curated names win over Unicode's."""
    curated = {g.char: g for g in core_glyphs()}
    out = []
    for code in [0x23F0, *range(0x2600, 0x27C0), 0x2B50, *range(0x1F300, 0x1FB00)]:
        char = chr(code)
        name = unicodedata.name(char, "").lower()
        if char in curated:
            out.append(curated[char])
            continue
        picture = name and not any(bad in name for bad in _NOT_PICTURES)
        if picture and not 0x1F3FB <= code <= 0x1F3FF and _visible(char):  # not the skin tones
            out.append(Glyph(char, (name,)))
    return out


def glyph_set(which: str) -> list[Glyph]:
    """Find a set of glyphs by name, ``core`` or ``all``."""
    sets = {"core": core_glyphs, "all": all_glyphs}
    if which not in sets:
        raise ValueError(f"no glyph set {which!r}; choose from {', '.join(sets)}")
    return sets[which]()


@lru_cache(maxsize=1)
def _font() -> Any:
    from PIL import ImageFont

    for path in (os.environ.get("NOTO_COLOR_EMOJI", ""), *FONT_PATHS):
        if path and os.path.exists(path):
            return ImageFont.truetype(path, FONT_SIZE)
    raise FileNotFoundError(
        "Noto Color Emoji not found; install Debian's fonts-noto-color-emoji or set NOTO_COLOR_EMOJI to the .ttf"
    )


@cache
def draw(char: str) -> Any:
    """Draw the glyph as an RGBA Pillow image, cropped to its visible box (None if the font lacks it)."""
    from PIL import Image, ImageDraw

    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((8, 8), char, font=_font(), embedded_color=True)
    box = canvas.getbbox()
    return canvas.crop(box) if box else None


def _visible(char: str) -> bool:
    # Characters that the font lacks, or draws as a monochrome outline, have (almost) no chroma and little area.
    image = draw(char)
    if image is None or min(image.size) < 24:
        return False
    rgba = np.asarray(image, dtype=np.int16)
    return bool((np.ptp(rgba[..., :3], axis=-1) * (rgba[..., 3] > 128)).max() > 24)


@cache
def sized(char: str, longest: int) -> np.ndarray:
    """Scale the glyph to ``longest`` pixels on its longer side: uint8 (h, w, 4)."""
    from PIL import Image

    image = draw(char)
    scale = longest / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def compose(char: str, colour: str, size: int, longest: int, dx: int = 0, dy: int = 0) -> np.ndarray:
    """Draw one picture, the glyph centred (plus dx, dy) on a plain background: uint8 (size, size, 3)."""
    glyph = sized(char, longest).astype(np.float32)
    out = np.empty((size, size, 3), np.float32)
    out[:] = COLOURS[colour]
    h, w = glyph.shape[:2]
    top, left = (size - h) // 2 + dy, (size - w) // 2 + dx
    top, left = min(max(top, 0), size - h), min(max(left, 0), size - w)
    alpha = glyph[..., 3:] / 255.0
    region = out[top : top + h, left : left + w]
    region *= 1.0 - alpha
    region += alpha * glyph[..., :3]
    return (out + 0.5).astype(np.uint8)


def sheet(pictures: np.ndarray, columns: int, path: Path) -> None:
    """Write pictures (N, h, w, 3) side by side on white, as one PNG."""
    from PIL import Image

    n, h, w, _ = pictures.shape
    rows = -(-n // columns)
    out = np.full((rows * h, columns * w, 3), 255, np.uint8)
    for k in range(n):
        r, c = divmod(k, columns)
        out[r * h : (r + 1) * h, c * w : (c + 1) * w] = pictures[k]
    Image.fromarray(out).save(path, optimize=True)
