"""What `sandboxd demo` runs in the sandbox: it finds the Mandelbrot set's area by counting points, and draws it."""

from __future__ import annotations

from typing import Final

PATH: Final = "/workspace/mandelbrot.py"
PICTURE: Final = "/workspace/mandelbrot.png"
#: The area that the literature gives (about 1.5066), and how far 400 rounds on a grid of this size may be off.
AREA: Final = 1.5066
TOLERANCE: Final = 0.03

SOURCE: Final = f"""\
import json
import time

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

left, right, bottom, top = -2.1, 0.7, -1.2, 1.2
width, height, rounds = 840, 720, 400
began = time.perf_counter()
x = np.linspace(left, right, width)
y = np.linspace(bottom, top, height)
c = (x + 1j * y[:, None]).ravel()
z = np.zeros_like(c)
escape = np.full(c.shape, rounds)
inside = np.arange(c.size)          # the points that have not escaped yet
for step in range(rounds):
    z = z * z + c[inside]
    stays = z.real ** 2 + z.imag ** 2 <= 4
    escape[inside[~stays]] = step
    z, inside = z[stays], inside[stays]
area = inside.size / c.size * (right - left) * (top - bottom)

figure, axes = plt.subplots(figsize=(8, 6.5), layout="constrained")
image = np.log1p(escape.reshape(height, width))
axes.imshow(image, extent=(left, right, bottom, top), origin="lower", cmap="magma")
axes.set(title=f"Mandelbrot set, area {{area:.4f}}", xlabel="Re c", ylabel="Im c")
figure.savefig({PICTURE!r}, dpi=120)
print(json.dumps({{
    "area": round(area, 4),
    "points": c.size,
    "seconds": round(time.perf_counter() - began, 2),
    "numpy": np.__version__,
    "matplotlib": matplotlib.__version__,
}}))
"""
