"""
What an event camera sees
=========================

:class:`spquant_plugin.data.DigitEvents` records handwritten digits with a simulated event camera: a
pixel says nothing while the light on it stays the same, and fires when its logarithm has changed by
a fixed step. So an image at rest gives no events; here the camera moves over it.
"""

# sphinx_gallery_thumbnail_number = 2
import matplotlib.pyplot as plt
import numpy as np

import spquant_plugin as spq

BRIGHTER, DARKER = "#d1495b", "#30638e"

digits = spq.data.DigitEvents("test", progress=False)
number = digits.labels.tolist().index(3)
film = digits.film(number)
times = np.linspace(0, 100_000, len(film)).round().astype(int)  # microseconds

# %%
# The film
# --------
# The camera goes along a triangle and comes back within 100 ms. These are six moments of it.

figure, axes = plt.subplots(1, 6, figsize=(9, 2), layout="constrained")
for axis, k in zip(axes, range(0, len(film), 6), strict=True):
    axis.imshow(film[k], cmap="gray", vmin=0, vmax=1)
    axis.set_title(f"{times[k] / 1000:.0f} ms", fontsize=10)
    axis.set_axis_off()
plt.show()

# %%
# Events in space and time
# ------------------------
# Each dot is one event: a pixel, a microsecond, and whether it got brighter or darker. Edges draw
# surfaces through space and time; their slope is the speed of the image.

events = digits.events(number)
figure = plt.figure(figsize=(8, 4), layout="constrained")
axes = figure.add_subplot(projection="3d")
axes.set_box_aspect((2.4, 1, 1), zoom=1.3)
for polarity, colour, name in ((1, BRIGHTER, "brighter"), (0, DARKER, "darker")):
    some = events[events["p"] == polarity]
    milliseconds = some["t"] / 1000
    axes.scatter(milliseconds, some["x"], some["y"], s=5, color=colour, label=name, linewidths=0)
axes.set(xlabel="time (ms)", ylabel="column", zlabel="row", zlim=(15, 0), xlim=(0, 100))
axes.set(yticks=(0, 5, 10, 15), zticks=(0, 5, 10, 15))
axes.xaxis.labelpad = 12
axes.view_init(elev=18, azim=-62)
figure.legend(loc="upper left", markerscale=3, frameon=False, title=f"{len(events)} events")
plt.show()

# %%
# Frames
# ------
# A network takes time in steps. Every event falls into one of eight windows and is counted at its
# pixel, brighter and darker in channels of their own: ``[8, 2, 16, 16]`` whole numbers.

frames, label = digits[number]
balance = (frames[:, 1] - frames[:, 0]).numpy()
largest = abs(balance).max()
figure, axes = plt.subplots(1, len(balance), figsize=(9, 1.8), layout="constrained")
for step, axis in enumerate(axes):
    shown = axis.imshow(balance[step], cmap="RdBu_r", vmin=-largest, vmax=largest)
    axis.set_title(f"step {step}", fontsize=10)
    axis.set(xticks=[], yticks=[])
figure.colorbar(shown, ax=axes, label="brighter - darker", shrink=0.8)
plt.show()
print(f"label {label}, frames {tuple(frames.shape)}, {int(frames.sum())} events")

# %%
# Other cameras
# -------------
# A camera is a record of five numbers. A larger contrast step gives fewer events; pixels that rest
# longer after an event drop most of a fast change; noise adds events without a cause. Each picture
# adds up the first third of the film, one leg of the triangle.

cameras = {
    "default": spq.data.EventCamera(),
    "contrast 0.6": spq.data.EventCamera(contrast=0.6),
    "refractory 10 ms": spq.data.EventCamera(refractory=10_000),
    "noise 60 per s": spq.data.EventCamera(noise=60.0),
}
leg = len(film) // 3 + 1
figure, axes = plt.subplots(1, len(cameras), figsize=(9, 2.8), layout="constrained")
for axis, (name, camera) in zip(axes, cameras.items(), strict=True):
    seen = camera.record(film[:leg], times[:leg], np.random.default_rng(0))
    picture = np.zeros(film.shape[1:])
    np.add.at(picture, (seen["y"], seen["x"]), np.where(seen["p"], 1, -1))
    shown = axis.imshow(picture, cmap="RdBu_r", vmin=-8, vmax=8)
    axis.set_title(f"{name}\n{len(seen)} events", fontsize=10)
    axis.set(xticks=[], yticks=[])
figure.colorbar(shown, ax=axes, label="brighter - darker", shrink=0.75)
plt.show()
