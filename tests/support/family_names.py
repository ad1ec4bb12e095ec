"""The families of models that are made, exported and run in tests; families.py makes them, with torch."""

from __future__ import annotations

FAMILIES = (
    *("sd15", "sd21", "sd-turbo", "lcm", "inpaint", "taesd", "pixel-text", "pixel", "pixel-ddim"),
    *("sdxl", "sdxl-turbo", "sdxl-lcm", "sdxl-inpaint", "sdxl-refiner"),
)
