"""All studies by the kind that a recipe's [study] says, and all that can be looked at in a run."""

from plusx.study.degradation import DEGRADATION
from plusx.study.plan import Look, Study
from plusx.study.watch import gradients


STUDIES: dict[str, Study] = {
    "degradation": DEGRADATION,
}

LOOKS: dict[str, Look] = {
    "gradients": gradients,
}
