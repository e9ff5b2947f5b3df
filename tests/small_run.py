"""The run that is killed, stopped and shared by processes: small, with all that has a state."""


def recipe(
    steps: int, batch_size: int, *, data: str = "", optim: str = "", device: str = ""
) -> str:
    """Its TOML, with lines of one's own in these tables.

    It has shuffling, augmentation, dropout, batch norm and momentum, and saves after every step.
    """
    return f"""
seed = 3
steps = {steps}
batch_size = {batch_size}

[net]
stem = "conv3 norm act"
stem_width = 8
size = 8
in_channels = 1
num_classes = 10

[[net.stages]]
depth = 1
width = 8
block = {{ body = "conv3s norm act drop.2 conv3 norm + act", shortcut = "pad" }}

[[net.stages]]
depth = 1
width = 16
stride = 2
block = {{ body = "conv3s norm act drop.2 conv3 norm + act", shortcut = "pad" }}

[data]
kind = "digits"
augment = "pad1 crop flip"
{data}

[optim]
kind = "sgd"
lr = 0.1
nesterov = true
{optim}

[schedule]
kind = "cosine"
warmup = 0.1

[device]
kind = "cpu"
threads = 1
precision = "float32"
{device}

[checkpoint]
every_steps = 1
every_seconds = 0.0
"""
