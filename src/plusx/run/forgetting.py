"""A second task for a trained classifier: which of four rotations an image has."""

import itertools
from copy import deepcopy

import torch

from plusx.data.dataset import Dataset
from plusx.data.loader import Loader
from plusx.run.folder import Run
from plusx.selfsupervised.rotation import Rotation
from plusx.tasks.prepare import find_device
from plusx.tasks.task import Task
from plusx.train.loop import fit
from plusx.train.state import State


BATCH_SIZE = 32  # images, each of them four times
LR = 0.01


def after_second_task(
    run: Run, dataset: Dataset, *, steps: int, seed: int = 0, device: str = "auto"
) -> Task:
    """Return a copy of the run's task after its network was trained on a second task, by SGD with
    momentum for this number of steps: to predict the rotation of the images (Gidaris et al. 2018).

    The head is fixed, all layers before it are trained, and no method reduces forgetting. The
    second task needs no labels, so any set of images can be used.
    Raises UserError for images that are not square.
    """
    task = deepcopy(run.task).to(find_device(device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        second = Rotation(task, run.preprocessing).to(task.device)
    optimizer = torch.optim.SGD(second.parameters(), lr=LR, momentum=0.9)
    batch_size = min(BATCH_SIZE, len(dataset))
    with Loader(dataset, batch_size=batch_size, seed=seed) as loader:
        epochs = (loader.epoch(number) for number in itertools.count())
        batches = itertools.islice(itertools.chain.from_iterable(epochs), steps)
        for _ in fit(State(second, optimizer, seed=seed), batches, LR):
            pass
    return task
