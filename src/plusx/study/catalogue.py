"""All studies by the kind that a recipe's [study] says, and all that can be looked at in a run."""

from plusx.study.ablation import ABLATION
from plusx.study.convergence import CONVERGENCE
from plusx.study.degradation import DEGRADATION
from plusx.study.generalisation import GENERALISATION
from plusx.study.plan import Look, Study
from plusx.study.skips import SKIPS
from plusx.study.watch import gradients


STUDIES: dict[str, Study] = {
    "degradation": DEGRADATION,
    "skips": SKIPS,
    "convergence": CONVERGENCE,
    "generalisation": GENERALISATION,
    "ablation": ABLATION,
}

LOOKS: dict[str, Look] = {
    "gradients": gradients,
}
