"""
A task that needs memory
========================

In :class:`spquant_plugin.data.Motion` a random texture moves, and the label is its direction and
speed. Every single frame is a random texture, whatever the label: only what was where one step
before tells. A spiking network has its membranes to remember that, so this is the task
on which low-precision membranes have to prove themselves.
"""

# sphinx_gallery_thumbnail_number = 2
import matplotlib.pyplot as plt
import numpy as np

import spquant_plugin as spq

level = spq.data.MotionLevel(directions=4, speeds=(1, 2), noise=0.01)
data = spq.data.Motion("test", count=256, level=level, steps=24, size=32, cache=False)
print(data, data.classes)


def recordings(name: str) -> np.ndarray:
    """All recordings of a class, ``[recordings, T, height, width]``."""
    return data.frames[data.labels == data.classes.index(name), :, 0].float().numpy()


# %%
# One frame does not tell
# -----------------------
# The same moment of four classes. No statistic of such a frame depends on the label: the share of
# pixels that spike is the same in each class but for chance.

names = ("right 1", "left 2", "down 1", "up 2")
figure, axes = plt.subplots(1, 4, figsize=(9, 2.6), layout="constrained")
for axis, name in zip(axes, names, strict=True):
    axis.imshow(recordings(name)[1, 4], cmap="gray_r", interpolation="nearest")
    axis.set_title(f"{name}: {recordings(name).mean():.1%} spike", fontsize=10)
    axis.set(xticks=[], yticks=[])
plt.show()

# %%
# Slopes in space and time
# ------------------------
# One row of pixels, followed through time. What moves sideways draws slanted lines, and their slope
# is the speed. What moves up or down leaves this row at once: there the lines are missing.

figure, axes = plt.subplots(1, 4, figsize=(9, 2.8), layout="constrained", sharey=True)
for axis, name in zip(axes, names, strict=True):
    axis.imshow(recordings(name)[1, :, 16], cmap="gray_r", interpolation="nearest")
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("column")
axes[0].set_ylabel("step")
plt.show()

# %%
# What a network has to find
# --------------------------
# How often a spike is followed, one step later, by a spike at a given distance: the average over
# all recordings of a class. The peak stands at the displacement of one step. Two frames are enough,
# one is not.

figure, axes = plt.subplots(1, 4, figsize=(9, 2.9), layout="constrained", sharey=True)
for axis, name in zip(axes, names, strict=True):
    spikes = np.fft.rfft2(recordings(name))
    pairs = np.fft.irfft2(spikes[:, :-1].conj() * spikes[:, 1:]).mean((0, 1))
    follows = pairs / recordings(name).sum((2, 3)).mean()
    near = np.fft.fftshift(follows)[12:21, 12:21]
    shown = axis.imshow(near, cmap="Blues", vmin=0, vmax=1, extent=(-4.5, 4.5, 4.5, -4.5))
    axis.set_title(name, fontsize=10)
    axis.set(xlabel="columns to the right", xticks=range(-4, 5, 2), yticks=range(-4, 5, 2))
axes[0].set_ylabel("rows down")
figure.colorbar(shown, ax=axes, label="share that follows", shrink=0.8)
plt.show()
