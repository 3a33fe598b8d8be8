"""The networks that both hosts have: channels of 3x3 convolutions and pools, and of an MLP."""

POOL = "AP"
CONVOLUTIONAL: dict[str, tuple[int | str, ...]] = {
    "conv_net": (32, POOL, 64, POOL),
    "vgg5": (32, 32, POOL, 64, 64, POOL),
    "vgg7": (32, 32, POOL, 64, 64, POOL, 128, 128, POOL, 256, 256, POOL),
    "vgg9": (64, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL),
    "vgg11": (64, 128, POOL, 256, 256, POOL, 512, 512, 512, 512, POOL, 1024, POOL),
}
MLP = (256, 256)
