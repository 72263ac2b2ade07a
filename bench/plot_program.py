"""Draws figures.json as figures.png; runs inside a sandbox, with the rootfs's matplotlib."""

import json

import matplotlib.pyplot as plt  # type: ignore[import-not-found]  # the rootfs has it, this machine need not

with open("figures.json") as file:
    FIGURES = json.load(file)

fig, axes = plt.subplots(
    len(FIGURES),
    1,
    figsize=(9, 0.9 + sum(0.6 + 0.3 * len(f["bars"]) for f in FIGURES)),
    height_ratios=[2 + len(f["bars"]) for f in FIGURES],
    squeeze=False,
)
for axis, figure in zip(axes[:, 0], FIGURES, strict=True):
    bars = figure["bars"][::-1]
    middle = [bar["p50"] for bar in bars]
    spread = [[bar["p50"] - bar["p10"] for bar in bars], [bar["p90"] - bar["p50"] for bar in bars]]
    colors = ["#c2410c" if bar["name"].startswith("sandboxd") else "#94a3b8" for bar in bars]
    axis.barh([bar["name"] for bar in bars], middle, xerr=spread, color=colors, ecolor="#475569", capsize=2)
    if min(middle) > 0 and max(middle) / min(middle) > 20:
        axis.set_xscale("log")
    for place, bar in enumerate(bars):
        axis.annotate(
            bar["label"], (bar["p90"], place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8
        )
    axis.margins(x=0.12)
    axis.set_title(f"{figure['title']} ({figure['unit']})", loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
fig.tight_layout()
fig.savefig("figures.png", dpi=120)
