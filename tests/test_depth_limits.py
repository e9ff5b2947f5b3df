"""What only the deepest networks of the zoo meet."""

import time

import pytest
import torch

from plusx.models import create_model
from plusx.store.tensors import encode
from plusx.tasks.classify import Classify
from plusx.train.optim import make_optimizer
from plusx.train.state import State
from plusx.zoo import find


@pytest.mark.slow
def test_the_state_of_resnet1202_is_written_and_read_in_seconds() -> None:
    with torch.device("meta"):
        names = [name for name, _ in create_model("resnet1202").named_parameters()]
    assert len(names) > 3000
    kinds = ("exp_avg", "exp_avg_sq", "step")  # of AdamW
    named = {f"task.net.{name}.{kind}": torch.zeros(1, 1, 1, 1) for name in names for kind in kinds}
    assert len(encode(named)) > 1 << 20

    spec = find("resnet110")
    task = Classify(create_model(spec, seed=0))
    state = State(task, make_optimizer(task, "sgd", lr=0.1, momentum=0.9))
    began = time.process_time()
    state.load_state_dict(*state.state_dict())
    assert time.process_time() - began < 2
